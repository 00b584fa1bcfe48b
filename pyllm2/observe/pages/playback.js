// A recorded run: one op is looked at, and one of its values is drawn.
const ops = data.ops;
let at = 0;
let language = 0;
let chosen = ""; // name of the value that is drawn, kept from op to op

function look(index) {
  at = between(index, 0, ops.length - 1);
  show();
}

// The first op of the next or previous pass.
function goToPass(step) {
  let n = at;
  while (n + step >= 0 && n + step < ops.length && ops[n + step].call === ops[at].call) n += step;
  n = between(n + step, 0, ops.length - 1);
  if (step < 0) while (n > 0 && ops[n - 1].call === ops[n].call) n -= 1;
  look(n);
}

function build() {
  const tree = byId("ops");
  let pass = null;
  let place = null;
  let box = null;
  let inside = null;
  ops.forEach((op, n) => {
    if (pass !== op.pass) {
      pass = op.pass;
      place = null;
      box = element("details");
      box.append(element("summary", visible(pass)));
      tree.append(box);
    }
    if (place !== op.place) {
      place = op.place;
      inside = box;
      if (op.layer !== null) {
        inside = element("details");
        inside.append(element("summary", place));
        box.append(inside);
      }
    }
    const button = element("button", op.label);
    button.dataset.op = n;
    button.addEventListener("click", () => look(n));
    inside.append(button);
  });
  byId("previous").addEventListener("click", () => look(at - 1));
  byId("following").addEventListener("click", () => look(at + 1));
  byId("earlier").addEventListener("click", () => goToPass(-1));
  byId("later").addEventListener("click", () => goToPass(1));
  const canvas = byId("map");
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("click", point);
}

function showTree() {
  for (const button of byId("ops").querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
  const here = byId("ops").querySelector(`[data-op="${at}"]`);
  here.setAttribute("aria-current", "step");
  for (let box = here.parentElement; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true;
  here.scrollIntoView({ block: "nearest" });
}

function showSource() {
  const found = data.sources[ops[at].op];
  byId("formula").textContent = found.formula;
  const tabs = byId("tabs");
  tabs.replaceChildren();
  language = between(language, 0, Math.max(found.sources.length - 1, 0));
  found.sources.forEach(([name], n) => {
    const button = element("button", name);
    button.setAttribute("aria-pressed", n === language);
    button.addEventListener("click", () => {
      language = n;
      showSource();
    });
    tabs.append(button);
  });
  if (!found.sources.length) return;
  const [, place, text] = found.sources[language];
  byId("place").textContent = place;
  byId("code").textContent = text;
}

// A value, or the result of another op that it is.
function resolved(value) {
  if (!value.from) return value;
  const [index, name] = value.from;
  const other = ops.find((op) => op.index === index).values.find((v) => v.source === "result" && v.result === name);
  return { ...other, ...value };
}

function current() {
  const values = ops[at].values;
  const named = values.find((v) => v.name === chosen);
  return resolved(named || values.find((v) => v.source === "result") || values[0]);
}

function showValues() {
  const table = byId("values");
  table.replaceChildren();
  const shown = current();
  for (const value of ops[at].values.map(resolved)) {
    const line = element("tr");
    line.append(element("th", value.name), element("td", value.shape), element("td", value.numbers));
    line.append(element("td", value.source));
    line.setAttribute("aria-selected", value.name === shown.name);
    line.addEventListener("click", () => {
      chosen = value.name;
      showValues();
    });
    table.append(line);
  }
  const canvas = byId("map");
  canvas.hidden = !shown.cells;
  byId("said").textContent = "";
  if (!shown.cells) return;
  shown.array ||= new Float32Array(bytes(shown.cells));
  const [rows, columns] = shown.grid;
  const cell = between(Math.floor(560 / columns), 3, 28);
  draw(canvas, shown.array, rows, columns, shown.scale, cell, between(Math.floor(420 / rows), cell, 4 * cell));
  byId("said").textContent = shown.legend;
}

function point(event) {
  const shown = current();
  const [rows, columns] = shown.grid;
  const where = cellAt(byId("map"), event, rows, columns);
  if (!where) return;
  const index = where[0] * columns + where[1];
  if (index >= shown.count) return;
  const exact = shown.legend ? `cell ${where.join(", ")}` : `[${indexOf(index, shown.dims).join(", ")}]`;
  byId("said").textContent = `${shown.name} ${exact} = ${number(shown.array[index])}; ${shown.legend}`.replace(/; $/, "");
}

// The index of the n-th element of an array of this shape.
function indexOf(n, dims) {
  const found = [];
  for (const size of [...dims].reverse()) {
    found.unshift(n % size);
    n = Math.floor(n / size);
  }
  return found;
}

function show() {
  const op = ops[at];
  byId("heading").textContent = `op ${at + 1} of ${ops.length} · ${visible(op.pass)} · ${op.name}`;
  showTree();
  showSource();
  showValues();
}

addEventListener("keydown", (event) => {
  if (isTyping(event)) return;
  const moves = {
    ArrowRight: () => look(at + 1),
    n: () => look(at + 1),
    ArrowLeft: () => look(at - 1),
    b: () => look(at - 1),
    f: () => goToPass(1),
    "]": () => goToPass(1),
    "[": () => goToPass(-1),
    Home: () => look(0),
    End: () => look(ops.length - 1),
    l: () => {
      language = (language + 1) % data.sources[ops[at].op].sources.length;
      showSource();
    },
    v: () => {
      const names = ops[at].values.map((v) => v.name);
      chosen = names[(names.indexOf(current().name) + 1) % names.length];
      showValues();
    },
  };
  if (!(event.key in moves)) return;
  event.preventDefault();
  moves[event.key]();
});
build();
show();
onTheme(showValues);
