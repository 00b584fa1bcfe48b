"use strict";
// What the pages share: the data, arrays out of base64, colours, heat maps.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(tag, text, attributes) {
  const found = document.createElement(tag);
  if (text !== undefined && text !== null) found.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) found.setAttribute(name, value);
  return found;
}

function bytes(text) {
  const binary = atob(text);
  const found = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) found[i] = binary.charCodeAt(i);
  return found.buffer;
}

// Numbers as the page shows them.
const number = (x) => (Number.isFinite(x) ? String(Number(x.toPrecision(5))) : String(x));
const percent = (x) => (x >= 0.995 ? "100%" : x >= 0.1 ? Math.round(100 * x) + "%" : (100 * x).toFixed(1) + "%");

// Blanks and control characters of a token, made visible.
const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣");

function channel(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A share from 0 to 1, or a signed one from -1 to 1, as a colour behind text.
function shade(share) {
  if (!Number.isFinite(share)) return Number.isNaN(share) ? "#f0f" : "var(--ink)";
  const size = Math.sqrt(Math.min(Math.abs(share), 1));
  return `rgba(${channel(share >= 0 ? "--heat" : "--cold")},${(0.6 * size).toFixed(3)})`;
}

// Draw rows × columns of values into a canvas; scale is the magnitude of the strongest colour.
function draw(canvas, values, rows, columns, scale, cell, height = cell) {
  canvas.width = columns * cell;
  canvas.height = rows * height;
  const context = canvas.getContext("2d");
  const colours = { heat: channel("--heat"), cold: channel("--cold"), panel: channel("--panel") };
  context.fillStyle = colours.panel;
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (let r = 0; r < rows; r++) {
    for (let k = 0; k < columns; k++) {
      const value = values[r * columns + k];
      if (value === undefined || value === 0) continue;
      if (Number.isNaN(value)) context.fillStyle = "#f0f";
      else {
        const size = Number.isFinite(value) && scale > 0 ? Math.sqrt(Math.min(Math.abs(value) / scale, 1)) : 1;
        context.fillStyle = `rgba(${value > 0 ? colours.heat : colours.cold},${size.toFixed(3)})`;
      }
      context.fillRect(k * cell, r * height, cell, height);
    }
  }
}

// The row and column under a pointer.
function cellAt(canvas, event, rows, columns) {
  const box = canvas.getBoundingClientRect();
  const r = Math.floor(((event.clientY - box.top) / box.height) * rows);
  const k = Math.floor(((event.clientX - box.left) / box.width) * columns);
  return r >= 0 && r < rows && k >= 0 && k < columns ? [r, k] : null;
}

const between = (x, low, high) => Math.min(Math.max(x, low), high);

// Keys that belong to a control the user is in.
function isTyping(event) {
  return event.ctrlKey || event.altKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
}

// Colours are read from the style sheet: draw again when it changes.
function onTheme(again) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
}
