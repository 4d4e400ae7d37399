// The live tab: frames of the camera go to the server as JPEG, what it sees comes back. Nothing is recorded.

import { $, drawBox, median, rest, rests, sentence, shares } from "./dom.js";
import { Problem, theKey, withKey } from "./ask.js";
import { closeCamera, openCamera } from "./camera.js";
import { rolling } from "./livechart.js";
import { storedSubject } from "./subjects.js";

const EVERY_MS = 80, HIGHEST = 360, QUALITY = 0.8, MOST_WAITING_BYTES = 200_000, REST_SECONDS = 3;
const DRAWN_EVERY_MS = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 100;
const DARK = 0.15; // As `MIN_BRIGHTNESS` of clipautt/prediction/cautions.py.
let session = null, failed = () => {};

// `model()` gives what is known of the chosen model, `fail(problem)` tells the person what went wrong.
export function listenToLive({ model, fail }) {
  failed = fail;
  $("live-start").addEventListener("click", () => (session ? stopLive() : start(model())));
  $("live-rest").addEventListener("click", () => {
    if (rests($("live-rest"))) return;
    session.socket.send(JSON.stringify({ type: "rest", seconds: REST_SECONDS }));
    status(`Keep a resting face for ${REST_SECONDS} seconds…`);
  });
  rest($("live-rest"), true);
}

export function stopLive(words = "Stopped.") {
  if (!session) return;
  const ended = session;
  session = null;
  clearInterval(ended.timer);
  ended.socket?.close();
  closeCamera($("live-camera"));
  $("live-face").replaceChildren();
  $("live-start").textContent = "Start";
  $("live-stage").classList.remove("on");
  rest($("live-rest"), true);
  status(words);
}

async function start({ name: model, not_learned: left }) {
  failed(null);
  session = { sent: new Map(), asked: 0, received: 0, waits: [], served: [], drawn: 0, encoding: false, chart: null, left };
  const mine = session;
  $("live-start").textContent = "Stop";
  $("live-card").hidden = false;
  status("Opening the camera…");
  try {
    await openCamera($("live-camera"));
    if (session !== mine) return closeCamera($("live-camera"));
    $("live-stage").classList.add("on");
    status("Connecting…");
    await withKey(() => connect(mine, model));
    if (session !== mine) return mine.socket.close();
    mine.timer = setInterval(() => sendFrame(mine), EVERY_MS);
    rest($("live-rest"), false);
    status($("live-first").checked ? `Keep a resting face for the first ${REST_SECONDS} seconds…` : `Running with model ${model}.`);
  } catch (problem) {
    if (session !== mine) return;
    stopLive("");
    failed(problem);
  }
}

function connect(mine, model) {
  return new Promise((resolve, reject) => {
    const address = new URL("v1/live", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = mine.socket = new WebSocket(address);
    let ended = false; // An error of the server's says more than the closing that follows.
    const end = (problem) => {
      if (ended) return;
      ended = true;
      reject(problem); // No effect once the session has begun.
      if (session === mine && mine.chart) {
        stopLive("");
        failed(problem);
      }
    };
    socket.onopen = () => socket.send(JSON.stringify(opening(model)));
    socket.onclose = () => end(new Problem({
      code: "silent", detail: "The live connection was closed", help: "Start it again; if that fails, look whether the server still runs",
    }));
    socket.onmessage = ({ data }) => {
      const told = JSON.parse(data);
      if (session !== mine) socket.close();
      else if (told.type === "error" && told.final === false) trouble(mine, told);
      else if (told.type === "error") end(new Problem(told));
      else hear[told.type]?.(mine, told);
      if (told.type === "ready") resolve();
    };
  });
}

// A frame, or a resting face, that could not be used; the session goes on.
function trouble(mine, { detail, help, frame }) {
  mine.sent.delete(frame);
  status([detail, help].map(sentence).join(" "));
}

function opening(model) {
  const start = { type: "start", model };
  if (storedSubject()) start.subject_id = storedSubject();
  if (theKey()) start.key = theKey();
  if ($("live-first").checked) start.resting_seconds = REST_SECONDS;
  return start;
}

const hear = {
  ready(mine, { action_units: names, window_frames: frames }) {
    mine.chart = rolling(names, mine.left);
    mine.windowFrames = frames;
    mine.begun = performance.now();
    $("live-shown").hidden = false;
    $("live-label").textContent = "";
    $("live-probabilities").replaceChildren();
  },
  rest(mine, { frames, seconds }) {
    status(`Resting face taken from ${frames} frames (${seconds.toFixed(1)} s); what follows is compared with it.`);
  },
  frame(mine, told) {
    const now = performance.now();
    mine.received += 1;
    mine.waits = [...mine.waits, now - (mine.sent.get(told.frame) ?? now)].slice(-50);
    mine.served = [...mine.served, 1000 * told.seconds].slice(-50);
    for (const frame of mine.sent.keys()) if (frame <= told.frame) mine.sent.delete(frame);
    mine.chart.add((now - mine.begun) / 1000, told.action_units, told.rises);
    drawFace(told.face);
    if (now - mine.drawn < DRAWN_EVERY_MS) return;
    mine.drawn = now;
    mine.chart.draw();
    show(mine, told, now);
  },
};

function show(mine, told, now) {
  const { probabilities, entropy } = told;
  $("live-label").textContent = probabilities
    ? Object.entries(probabilities).reduce((a, b) => (b[1] > a[1] ? b : a))[0]
    : `Collecting frames: ${told.window_frames} of ${mine.windowFrames}`;
  if (probabilities) $("live-probabilities").replaceChildren(...shares(probabilities, $("live-label").textContent));
  $("live-entropy").hidden = entropy === null;
  if (entropy !== null) {
    const most = Math.log(Math.max(2, Object.keys(probabilities ?? {}).length));
    const share = Math.min(1, entropy / most);
    $("live-unsure").setAttribute("aria-valuenow", share.toFixed(2));
    $("live-unsure").firstElementChild.style.width = `${100 * share}%`;
    $("live-entropy-words").textContent = `${entropy.toFixed(2)} nats of at most ${most.toFixed(2)}`;
  }
  $("live-facts").textContent = `${(1000 * mine.received / (now - mine.begun)).toFixed(1)} frames a second; `
    + `${told.dropped} dropped; answer after ${Math.round(median(mine.waits))} ms (server: ${Math.round(median(mine.served))})`;
  $("live-basis").textContent = basis(told);
}

function basis({ personalized, resting, rises, face, brightness }) {
  if (face && !face.found) return "No face is found in this moment.";
  if (brightness < DARK && brightness !== null) return `The picture is dark: ${brightness.toFixed(2)} of 1, where ${DARK} is needed.`;
  if (resting) return "The resting face is being taken.";
  const over = rises ? "your resting face" : "its own middle of the last seconds, as no resting face is known yet";
  return `Each curve is the rise over ${over}. ${personalized ? "The answer is personalized." : "The answer is not personalized."}`;
}

function drawFace(face) {
  const overlay = $("live-face"), canvas = $("live-canvas");
  if (!face) return overlay.replaceChildren();
  drawBox(overlay, canvas.width, canvas.height, face);
}

// Where the line is slow, frames are left out here already: old frames are of no use.
function sendFrame(mine) {
  const camera = $("live-camera"), canvas = $("live-canvas");
  if (session !== mine || mine.encoding || !camera.videoWidth || mine.socket.bufferedAmount > MOST_WAITING_BYTES) return;
  const scale = Math.min(1, HIGHEST / camera.videoHeight);
  const [width, height] = [camera.videoWidth, camera.videoHeight].map((pixels) => Math.round(scale * pixels));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext("2d").drawImage(camera, 0, 0, width, height);
  mine.encoding = true;
  canvas.toBlob((jpeg) => {
    mine.encoding = false;
    if (!jpeg || session !== mine || mine.socket.readyState !== WebSocket.OPEN) return;
    mine.sent.set(mine.asked, performance.now());
    mine.asked += 1;
    mine.socket.send(jpeg);
  }, "image/jpeg", QUALITY);
}

function status(words) {
  $("live-status").textContent = words;
}
