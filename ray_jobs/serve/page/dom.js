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

export function size(bytes) {
  return bytes < 1e5 ? `${Math.ceil(bytes / 1e3)}\u00a0kB` : `${+(bytes / 1e6).toFixed(1)}\u00a0MB`;
}

export function signed(value, digits = 3) {
  const text = Math.abs(value).toFixed(digits);
  return +text === 0 ? "0" : `${value < 0 ? "−" : "+"}${text}`;
}

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

export function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?…]$/.test(trimmed) ? "" : ".");
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
