// Records a clip from the camera: preview, countdown, recording with a limit, and a file at the end.

import { $, element, rest, rests } from "./dom.js";
import { closeCamera, openCamera } from "./camera.js";
import { Problem } from "./ask.js";

const LENGTHS = [4, 8, 15, 30, 60], USUAL = 8, KINDS = ["video/webm;codecs=vp8", "video/webm", "video/mp4"];
const stage = { recorder: null, timer: 0, opening: false };

// `limits` are the server's; `done(file)` gets the clip and `failed(problem)` why there is none.
export function recording({ limits, done, failed }) {
  const fitting = LENGTHS.filter((seconds) => seconds + 0.5 <= limits.max_seconds);
  const lengths = fitting.length ? fitting : [Math.max(1, Math.floor(limits.max_seconds - 0.5))];
  $("record-seconds").replaceChildren(...lengths.map((seconds) => new Option(`${seconds} seconds`, seconds)));
  $("record-seconds").value = lengths.includes(USUAL) ? USUAL : lengths[lengths.length - 1];
  $("record-open").onclick = () => open().catch(failed);
  $("record-start").onclick = () => start(limits, done).catch((problem) => { idle(); failed(problem); });
  $("record-stop").onclick = () => (stage.recorder ? stage.recorder.stop() : idle());
  $("record-close").onclick = () => closeRecorder(true);
}

async function open() {
  if (stage.opening) return;
  stage.opening = true;
  try {
    await openCamera($("camera"));
  } finally {
    stage.opening = false;
  }
  $("recorder").hidden = false;
  $("record-open").hidden = true;
  idle();
  $("record-start").focus();
}

export function closeRecorder(focus = false) {
  clearInterval(stage.timer);
  if (stage.recorder) {
    stage.recorder.onstop = null; // What was recorded so far is not wanted.
    stage.recorder.stop();
    stage.recorder = null;
  }
  closeCamera($("camera"));
  $("recorder").hidden = true;
  $("record-open").hidden = false;
  if (focus) $("record-open").focus();
}

function idle() {
  clearInterval(stage.timer);
  stage.recorder = null;
  rest($("record-start"), false);
  $("record-stop").hidden = true;
  $("record-progress").hidden = true;
  $("countdown").textContent = "";
  $("record-status").textContent = "Nothing is recorded yet. Bring your face close, until it fills the frame.";
}

async function start(limits, done) {
  if (rests($("record-start"))) return;
  const kind = globalThis.MediaRecorder && KINDS.find((name) => MediaRecorder.isTypeSupported(name));
  if (!kind) throw new Problem({ code: "no_recorder", detail: "This browser cannot record videos", help: "Choose a file instead" });
  rest($("record-start"), true);
  $("record-stop").hidden = false;
  $("record-stop").textContent = "Cancel";
  let left = 3;
  const tick = () => {
    $("countdown").textContent = left || "";
    $("record-status").textContent = left ? `Recording begins in ${left}` : "";
    if (!left--) {
      clearInterval(stage.timer);
      record(kind, Number($("record-seconds").value), limits.max_bytes, done);
    }
  };
  stage.timer = setInterval(tick, 700);
  tick();
}

function record(kind, seconds, mostBytes, done) {
  const recorder = new MediaRecorder($("camera").srcObject, { mimeType: kind, videoBitsPerSecond: 2_500_000 });
  const parts = [];
  const begun = performance.now();
  let bytes = 0;
  stage.recorder = recorder;
  recorder.ondataavailable = ({ data }) => {
    parts.push(data);
    bytes += data.size;
    if (bytes > 0.9 * mostBytes && recorder.state === "recording") recorder.stop();
  };
  recorder.onstop = () => {
    const type = kind.split(";")[0];
    closeRecorder();
    done(new File(parts, `recording.${type.split("/")[1]}`, { type }));
  };
  recorder.start(200);
  $("record-stop").textContent = "Stop now";
  $("record-status").textContent = "Recording";
  $("record-progress").hidden = false;
  stage.timer = setInterval(() => {
    const spent = (performance.now() - begun) / 1000;
    $("record-progress").value = Math.min(1, spent / seconds);
    $("countdown").replaceChildren(element("span", "●", "dot"), ` ${Math.max(0, seconds - spent).toFixed(0)} s`);
    if (spent >= seconds && recorder.state === "recording") recorder.stop();
  }, 100);
}

