// The clip with the face box over it, the strip below it that marks the chosen window, and going to a moment.

import { $, drawBox, move, node } from "./dom.js";
import { endOf, stepOf } from "./chart.js";
import { nearest } from "./heatmap.js";

const video = () => $("player");
let address = null, stopAt = null, boxes = null, far = 0, hear = () => {}, strip = null;

// Shows a file; `heard(seconds)` hears where the video is.
export function showClip(file, answer, heard) {
  forgetClip();
  address = URL.createObjectURL(file);
  hear = heard;
  boxes = answer.face_boxes;
  far = boxes ? 1.5 * stepOf(boxes.time_seconds) : 0;
  video().src = address;
  $("unplayable").hidden = true;
  $("stage").hidden = $("replay").hidden = false;
  strip = drawStrip(answer);
  $("replay").onclick = () => play(answer.window_start_seconds, answer.window_end_seconds);
  $("boxed").textContent = words(answer);
}

export function forgetClip() {
  if (address) URL.revokeObjectURL(address);
  address = stopAt = boxes = null;
  $("face").replaceChildren();
}

export function seek(seconds) {
  stopAt = null;
  video().currentTime = seconds;
  show(seconds);
}

function play(from, to) {
  video().currentTime = from;
  stopAt = to;
  video().play().catch(() => {}); // A file that this browser cannot play has its own words.
}

function words({ face_boxes: found }) {
  if (!found) return "No face detector is used: the middle of the picture is taken for the face.";
  const missing = found.found.filter((one) => !one).length, all = found.found.length;
  if (!missing) return `The face is found in all ${all} frames that were looked at.`;
  return `The face is not found in ${missing} of ${all} frames that were looked at (hatched).`;
}

function show(seconds) {
  hear(seconds);
  if (strip) move(strip.playhead, { x1: strip.x(seconds), x2: strip.x(seconds) });
  drawFace(seconds);
}

// A dashed box is inferred from the frames around it; away from all frames with a face there is none.
function drawFace(seconds) {
  const overlay = $("face"), width = video().videoWidth, height = video().videoHeight;
  if (!boxes?.time_seconds.length || !width) return overlay.replaceChildren();
  const at = nearest(boxes.time_seconds, seconds), side = boxes.side[at];
  if (side === null || Math.abs(boxes.time_seconds[at] - seconds) > far) return overlay.replaceChildren();
  drawBox(overlay, width, height, { x: boxes.x[at], y: boxes.y[at], side, tilt: boxes.tilt[at] ?? 0, found: boxes.found[at] });
}

function drawStrip(answer) {
  const end = endOf(answer), x = (seconds) => (1000 * Math.min(seconds, end)) / end;
  const svg = node("svg", { viewBox: "0 0 1000 20", preserveAspectRatio: "none", "aria-hidden": "true" });
  const [from, to] = [answer.window_start_seconds, answer.window_end_seconds];
  svg.append(hatching(), node("rect", { class: "ground", width: 1000, height: 20 }));
  svg.append(node("rect", { class: "chosen", x: x(from), width: Math.max(8, x(to) - x(from)), height: 20 }));
  const found = answer.face_boxes;
  if (found) {
    const step = Math.max(2, x(stepOf(found.time_seconds)));
    found.time_seconds.forEach((time, at) => {
      if (!found.found[at]) svg.append(node("rect", { class: "missing", x: x(time) - step / 2, width: step, height: 20 }));
    });
  }
  const playhead = node("line", { class: "playhead", y1: 0, y2: 20, "vector-effect": "non-scaling-stroke" });
  svg.append(playhead);
  $("strip").replaceChildren(svg);
  $("strip").onclick = (event) => {
    const area = $("strip").getBoundingClientRect();
    seek((end * (event.clientX - area.left)) / area.width);
  };
  return { playhead, x };
}

function hatching() {
  const pattern = node("pattern", { id: "hatch", width: 16, height: 10, patternUnits: "userSpaceOnUse" });
  pattern.append(node("path", { d: "M-4 12 L20 -2 M-4 2 L4 -2 M12 12 L20 8", class: "hatch" }));
  const definitions = node("defs");
  definitions.append(pattern);
  return definitions;
}

function follow() {
  show(video().currentTime);
  if (stopAt !== null && video().currentTime >= stopAt) {
    stopAt = null;
    video().pause();
  }
  if (!video().paused) requestAnimationFrame(follow);
}

// What a browser's recorder writes has no duration, without which the controls cannot seek: going past the end finds it.
function findDuration() {
  if (video().duration !== Infinity) return;
  video().addEventListener("durationchange", () => { video().currentTime = 0; }, { once: true });
  video().currentTime = 1e7;
}

export function listenToPlayer() {
  video().addEventListener("play", follow);
  for (const event of ["timeupdate", "seeked", "loadeddata"]) video().addEventListener(event, follow);
  video().addEventListener("loadedmetadata", findDuration);
  video().addEventListener("error", () => {
    if (!address) return;
    $("unplayable").hidden = false;
    $("stage").hidden = $("replay").hidden = true;
  });
}
