// The lens: one token and one layer are chosen; the head is the one drawn large.
const T = data.tokens.length;
const L = data.layers;
const NH = data.heads;
const packed = new Uint16Array(bytes(data.attention)); // lower triangles, 65535 is 1
const triangle = (T * (T + 1)) / 2;
const chosen = { token: T - 1, layer: L - 1, head: 0 };

function attention(layer, head, query, key) {
  if (key > query) return 0;
  return packed[(layer * NH + head) * triangle + (query * (query + 1)) / 2 + key] / 65535;
}

function map(layer, head) {
  const found = new Float32Array(T * T);
  for (let q = 0; q < T; q++) for (let k = 0; k <= q; k++) found[q * T + k] = attention(layer, head, q, k);
  return found;
}

const rowName = (row) => (row ? `layer ${row - 1}` : "embedding");

function choose(changes) {
  Object.assign(chosen, changes);
  chosen.token = between(chosen.token, 0, T - 1);
  chosen.layer = between(chosen.layer, 0, L - 1);
  chosen.head = between(chosen.head, 0, NH - 1);
  show();
}

// ---- built once --------------------------------------------------------------------------------

function build() {
  const text = byId("text");
  data.tokens.forEach((id, t) => {
    const share = t ? data.shares[L][t - 1] : null;
    const button = element("button", visible(data.texts[t]));
    button.dataset.token = t;
    button.title = share === null ? `id ${id}` : `id ${id}: probability ${number(share)}`;
    button.addEventListener("click", () => choose({ token: t }));
    text.append(button);
  });
  const table = byId("lens");
  const head = element("tr");
  head.append(element("th", ""));
  data.texts.forEach((word) => head.append(element("th", visible(word))));
  table.append(head);
  for (let row = L; row >= 0; row--) {
    const line = element("tr");
    line.append(element("th", rowName(row)));
    for (let t = 0; t < T; t++) {
      const [word, share] = data.best[row][t][0];
      const cell = element("td", visible(word) + " ");
      cell.append(element("small", percent(share)));
      cell.dataset.row = row;
      cell.dataset.token = t;
      cell.title = data.best[row][t].map(([w, p]) => `${percent(p)} ${visible(w)}`).join("\n");
      cell.addEventListener("click", () => choose({ token: t, layer: Math.max(row - 1, 0) }));
      line.append(cell);
    }
    table.append(line);
  }
  for (let head = 0; head < NH; head++) {
    const figure = element("figure");
    const canvas = element("canvas");
    canvas.dataset.head = head;
    figure.append(canvas, element("figcaption", `head ${head}`));
    figure.addEventListener("click", () => choose({ head }));
    byId("heads").append(figure);
  }
  const large = byId("large");
  const say = (event) => {
    const at = cellAt(large, event, T, T);
    if (!at) return;
    const [q, k] = at;
    const words = k > q ? "the future" : number(attention(chosen.layer, chosen.head, q, k));
    byId("weight").textContent = `${visible(data.texts[q])} attends to ${visible(data.texts[k])}: ${words}`;
  };
  large.addEventListener("pointermove", say);
  large.addEventListener("click", (event) => {
    const at = cellAt(large, event, T, T);
    if (at) choose({ token: at[0] });
    say(event);
  });
  byId("previous").addEventListener("click", () => choose({ token: chosen.token - 1 }));
  byId("following").addEventListener("click", () => choose({ token: chosen.token + 1 }));
  const layers = byId("layer");
  for (let i = 0; i < L; i++) layers.append(element("option", `layer ${i}`, { value: i }));
  layers.addEventListener("change", () => choose({ layer: Number(layers.value) }));
  byId("attended").addEventListener("change", show);
}

// ---- drawn again when something is chosen ------------------------------------------------------

function showText() {
  const attended = byId("attended").checked;
  for (const button of byId("text").children) {
    const t = Number(button.dataset.token);
    const share = attended ? attention(chosen.layer, chosen.head, chosen.token, t) : t ? data.shares[L][t - 1] : 0;
    button.style.background = shade(share);
    button.setAttribute("aria-pressed", t === chosen.token);
  }
}

function showTable() {
  for (const cell of byId("lens").querySelectorAll("td")) {
    const row = Number(cell.dataset.row);
    const t = Number(cell.dataset.token);
    cell.style.background = shade(data.best[row][t][0][1]);
    cell.classList.toggle("chosen", t === chosen.token && row === chosen.layer + 1);
  }
}

function showDetail() {
  const { token, layer } = chosen;
  const box = byId("detail");
  box.replaceChildren();
  const first = element("div", "After ");
  first.append(element("b", visible(data.texts[token])), ` (token ${token + 1} of ${T}, id ${data.tokens[token]}), layer ${layer}: `);
  data.best[layer + 1][token].forEach(([word, share], n) => {
    first.append(n ? ", " : "", element("b", visible(word)), ` ${percent(share)}`);
  });
  box.append(first);
  if (token + 1 < T) {
    const second = element("div", "What came is ");
    second.append(element("b", visible(data.texts[token + 1])));
    second.append(`: here rank ${data.ranks[layer + 1][token] + 1}, probability ${number(data.shares[layer + 1][token])};`);
    second.append(` at the end rank ${data.ranks[L][token] + 1}, probability ${number(data.shares[L][token])}`);
    box.append(second);
  }
  box.append(element("div", `Norm of the stream: ${number(data.norms[layer + 1][token])}`));
}

function showMaps() {
  const { layer, head } = chosen;
  const small = between(Math.floor(110 / T), 1, 12);
  for (const canvas of byId("heads").querySelectorAll("canvas")) {
    const h = Number(canvas.dataset.head);
    draw(canvas, map(layer, h), T, T, 1, small);
    canvas.setAttribute("aria-pressed", h === head);
  }
  draw(byId("large"), map(layer, head), T, T, 1, between(Math.floor(420 / T), 2, 40));
  byId("which").textContent = `layer ${layer}, head ${head}: rows are queries, columns keys`;
}

function showNorms() {
  const picture = byId("norms");
  const [width, height, left, bottom] = [400, 220, 40, 20];
  const most = Math.max(...data.norms.flat().filter(Number.isFinite)) || 1;
  const x = (row) => left + (row / L) * (width - left - 10);
  const y = (norm) => (height - bottom) * (1 - norm / most) + 8 * (norm / most);
  const parts = [];
  const order = [...Array(T).keys()].filter((t) => t !== chosen.token).concat(chosen.token);
  for (const t of order) {
    const points = data.norms.map((row, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(row[t]).toFixed(1)}`);
    parts.push(`<path d="${points.join("")}"${t === chosen.token ? ' class="chosen"' : ""}/>`);
  }
  parts.push(`<text x="2" y="14">${number(most)}</text><text x="${left}" y="${height - 4}">embedding</text>`);
  parts.push(`<text x="${width - 48}" y="${height - 4}">layer ${L - 1}</text>`);
  picture.innerHTML = parts.join("");
}

function show() {
  byId("layer").value = chosen.layer;
  byId("place").textContent = `token ${chosen.token + 1} of ${T}`;
  showText();
  showTable();
  showDetail();
  showMaps();
  showNorms();
}

addEventListener("keydown", (event) => {
  if (isTyping(event)) return;
  const moves = {
    ArrowLeft: { token: chosen.token - 1 },
    ArrowRight: { token: chosen.token + 1 },
    ArrowUp: { layer: chosen.layer + 1 },
    ArrowDown: { layer: chosen.layer - 1 },
    Home: { token: 0 },
    End: { token: T - 1 },
    "[": { head: chosen.head - 1 },
    "]": { head: chosen.head + 1 },
  };
  if (!(event.key in moves)) return;
  event.preventDefault();
  choose(moves[event.key]);
});
build();
show();
onTheme(show);
