// Elements and the words around numbers. All text is set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg"; // A name, not an address: nothing is fetched.

export const $ = (id) => document.getElementById(id);

export function element(name, text = "", classes = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = classes;
  return made;
}

export function node(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

export function move(shape, attributes) {
  for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
}

// The time axis below a chart: `x` tells where a second is, `y` where the words stand.
export function timeAxis(svg, seconds, x, y) {
  for (const tick of seconds) svg.append(node("text", { x: x(tick), y, "text-anchor": "middle" }, `${+tick.toFixed(2)} s`));
}

// A piece of the line that a chart draws for this place of a list.
export function lineSample(index = null) {
  const svg = node("svg", { viewBox: "0 0 28 10", "aria-hidden": "true" });
  if (index !== null) svg.append(node("line", { class: `series s${index}`, x1: 0, x2: 28, y1: 5, y2: 5 }));
  return svg;
}

// The box of a face over a picture of `width` × `height` pixels; dashed where it is inferred.
export function drawBox(overlay, width, height, { x, y, side, tilt = 0, found }) {
  const shape = overlay.firstChild ?? overlay.appendChild(node("rect", { "vector-effect": "non-scaling-stroke" }));
  overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
  move(shape, {
    x, y, width: side, height: side, rx: side / 20,
    class: found ? "box" : "box inferred",
    transform: `rotate(${tilt} ${x + side / 2} ${y + side / 2})`,
  });
}

export function size(bytes) {
  return bytes < 1e5 ? `${Math.ceil(bytes / 1e3)}\u00a0kB` : `${+(bytes / 1e6).toFixed(1)}\u00a0MB`;
}

export function signed(value, digits = 3) {
  const text = Math.abs(value).toFixed(digits);
  return +text === 0 ? "0" : `${value < 0 ? "−" : "+"}${text}`;
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

export function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?…]$/.test(trimmed) ? "" : ".");
}

export function shorten(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

// Rows of a list of definitions: class, bar, number. `before` is marked on the bar where it is given.
export function shares(probabilities, label, before = null) {
  return Object.entries(probabilities).flatMap(([name, value]) => {
    const bar = element("dd", "", name === label ? "bar top" : "bar");
    const filled = element("i");
    filled.style.width = `${100 * value}%`;
    bar.append(filled);
    const number = element("dd", percent(value), "number");
    if (before) {
      const mark = element("b");
      mark.style.left = `${100 * before[name]}%`;
      bar.append(mark);
      number.append(element("span", ` (before: ${percent(before[name])})`, "soft small"));
    }
    return [element("dt", name), bar, number];
  });
}

// A button stays enabled while it does nothing: one that is disabled loses the keyboard's focus.
export function rest(button, resting) {
  button.setAttribute("aria-disabled", resting);
}

export function rests(button) {
  return button.getAttribute("aria-disabled") === "true";
}
