// The page: a clip goes in, the server's answer is shown. Which model, whose face, and what is told to the person.

import { $, element, rest, sentence, size } from "./dom.js";
import { ask, askForKeysWith, pause, send, setKey, theKey } from "./ask.js";
import { listenToLive, stopLive } from "./live.js";
import { listenToPlayer } from "./player.js";
import { closeRecorder, recording } from "./record.js";
import { hideAnswers, showAnswers } from "./result.js";
import { chosenSubject, clipChanged, listenToSubjects, loadSubjects, storedSubject } from "./subjects.js";

const ALL = "\u0000all"; // No model has this name.
let served = null, clip = null, previewed = null, stopping = null, entered = null;

// Errors

function fail(problem) {
  $("error").hidden = !problem || problem.name === "AbortError"; // Who stops something knows it.
  if ($("error").hidden) return;
  const wait = problem.retry ? ` Try again in ${problem.retry} s.` : "";
  $("error-detail").textContent = sentence(problem.message || "The page failed");
  $("error-help").textContent = sentence(problem.help ?? "") + wait;
  $("error-help").hidden = !$("error-help").textContent;
  $("error").scrollIntoView({ block: "nearest" });
}

// The key

function keyAsked(problem) {
  $("key-problem").textContent = sentence(problem.message);
  if (!entered) {
    const was = document.activeElement;
    entered = new Promise((resolve) => {
      $("key-form").onsubmit = (event) => {
        event.preventDefault();
        const value = $("key").value.trim();
        if (!value) return;
        setKey(value);
        $("key").value = "";
        $("key-form").hidden = true;
        entered = null;
        was?.focus?.();
        resolve();
      };
    });
    $("key-form").hidden = false;
    $("key").focus();
  }
  return entered;
}

// What is served

async function welcome() {
  for (;;) {
    try {
      served = await ask("v1/models");
      break;
    } catch (problem) {
      if (!["busy", "worker_lost"].includes(problem.code)) throw problem;
      $("waiting").textContent = sentence(problem.message);
      await pause(problem.retry ?? 2);
    }
  }
  $("waiting").textContent = "";
  showModels();
  const { limits } = served;
  $("limits").textContent = `One face that fills most of the picture; at most ${limits.max_seconds}\u00a0s and ${size(limits.max_bytes)}`;
  recording({ limits, done: (file) => choose(file, true), failed: fail });
  await loadSubjects();
}

function showModels() {
  const names = served.models.map(({ name }) => name);
  $("model").replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.length > 1) $("model").append(new Option("All of them", ALL));
  $("model-row").hidden = names.length < 2;
  $("adapt").replaceChildren(new Option("No", "none"), new Option(`To this clip alone, by ${served.per_video}`, "per_video"),
    new Option("After this person's earlier clips, and remember it", "online"));
  for (const id of ["choices", "tabs", "clip"]) $(id).hidden = false;
  $("forget-key").hidden = !theKey();
  modelChanged();
  subjectChanged();
}

function modelOf(name) {
  return served.models.find((model) => model.name === name) ?? served.models[0];
}

function chosenModels() {
  return $("model").value === ALL ? served.models : [modelOf($("model").value)];
}

// What the chosen models were trained on stands before every answer.
function modelChanged() {
  const alike = new Map();
  for (const { name, trained_on: seen, rendered_only: rendered, classes } of chosenModels()) {
    const parts = Object.entries(seen).map(([part, footage]) => `${part}: ${footage}`).join("; ");
    const limit = rendered
      ? "A part of it has seen rendered faces only, so what it says about real people means nothing."
      : "What it says about footage of another kind means nothing.";
    const words = `Trained on: ${parts}. ${limit}`;
    alike.set(words, [...(alike.get(words) ?? []), `${name} (${classes.join(", ")})`]);
  }
  $("trained-on").replaceChildren(...[...alike].map(([words, names]) => element("p", `${names.join("; ")}. ${words}`)));
  $("trained-on").classList.toggle("warn", chosenModels().some(({ rendered_only: rendered }) => rendered));
}

function subjectChanged() {
  const online = $("adapt").querySelector("option[value=online]");
  if (online) online.disabled = !chosenSubject();
  if (online?.disabled && $("adapt").value === "online") $("adapt").value = "none";
}

// The clip

function choose(file, focus = false) {
  fail(null);
  hideAnswers();
  clip = file ?? null;
  $("chosen").textContent = clip ? `${clip.name} (${size(clip.size)})` : "Choose a video, or drop it here";
  if (previewed) URL.revokeObjectURL(previewed);
  previewed = clip?.size ? URL.createObjectURL(clip) : null;
  $("preview").hidden = !previewed;
  $("no-preview").hidden = true;
  if (previewed) $("preview").src = previewed;
  else $("preview").removeAttribute("src");
  clipChanged();
  if (focus) $("predict").focus();
}

async function predict(event) {
  event.preventDefault();
  if (stopping) return;
  fail(null);
  if (!clip) return fail({ message: "Choose or record a video first" });
  if (!clip.size) return fail({ message: "The file is empty", help: "Choose another file" });
  if (clip.size > served?.limits.max_bytes) {
    return fail({ message: `The file is too large; at most ${size(served.limits.max_bytes)} are allowed`, help: "Send a shorter video, or one with fewer pixels" });
  }
  hideAnswers();
  work(new AbortController());
  try {
    const answer = await send("POST", "v1/predict", question(), { told: progress, signal: stopping.signal });
    $("preview").hidden = $("no-preview").hidden = true;
    showAnswers(answer, clip, modelOf);
    if (answer.adapt === "online") await loadSubjects(); // The clip has added to what is stored.
  } catch (problem) {
    fail(problem);
  } finally {
    work(null);
  }
}

function question() {
  const form = new FormData();
  form.append("video", clip, clip.name);
  for (const { name } of served ? chosenModels() : []) form.append("model", name);
  const adapt = $("adapt").value || "none";
  const subject = { none: storedSubject, per_video: () => "", online: chosenSubject }[adapt](); // per_video is about no person
  if (subject) form.append("subject_id", subject);
  form.append("adapt", adapt);
  return form;
}

function work(controller) {
  stopping = controller;
  rest($("predict"), Boolean(controller));
  $("cancel").hidden = $("progress").hidden = !controller;
  $("status").textContent = controller ? "Sending…" : "";
  $("progress").value = 0;
}

// Sending has a share; for computing, the bar has no value and so moves by itself.
function progress(share) {
  if (!stopping) return;
  if (share < 1) $("progress").value = share;
  else $("progress").removeAttribute("value");
  $("status").textContent = share < 1 ? `Sending… ${Math.floor(100 * share)} %` : "Looking at the video…";
}

// Tabs

function openTab(name, focus = false) {
  for (const tab of ["clip", "live"]) {
    const open = tab === name;
    $(tab).hidden = !open;
    $(`tab-${tab}`).setAttribute("aria-selected", open);
    $(`tab-${tab}`).tabIndex = open ? 0 : -1;
    if (open && focus) $(`tab-${tab}`).focus();
  }
  fail(null);
  if (name === "live") closeRecorder();
  else stopLive();
  $("person-buttons").hidden = $("personalize-hint").hidden = $("adapt-row").hidden = name === "live"; // They are about the chosen clip.
  $("result").hidden = name === "live" || !$("player").getAttribute("src");
}

function listen() {
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // Else the browser would leave the page and open the file.
      $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) {
        openTab("clip");
        choose(event.dataTransfer.files[0]);
      }
    });
  }
  $("form").addEventListener("submit", predict);
  $("forget-key").addEventListener("click", () => { setKey(null); location.reload(); });
  $("video").addEventListener("change", () => choose($("video").files[0]));
  $("cancel").addEventListener("click", () => { stopping?.abort(); $("predict").focus(); });
  $("preview").addEventListener("error", () => {
    if (!previewed) return;
    $("preview").hidden = true;
    $("no-preview").hidden = false;
  });
  $("model").addEventListener("change", modelChanged);
  document.addEventListener("subjectchange", subjectChanged);
  for (const name of ["clip", "live"]) {
    $(`tab-${name}`).addEventListener("click", () => openTab(name));
    $(`tab-${name}`).addEventListener("keydown", ({ key }) => {
      if (key === "ArrowLeft" || key === "ArrowRight") openTab(name === "clip" ? "live" : "clip", true);
    });
  }
  addEventListener("pagehide", () => { stopLive(); closeRecorder(); });
}

askForKeysWith(keyAsked);
listen();
listenToPlayer();
listenToSubjects({ clip: () => clip, failed: fail });
listenToLive({ model: () => chosenModels()[0], fail });
welcome().catch(fail);
