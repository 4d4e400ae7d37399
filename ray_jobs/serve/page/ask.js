// What the page asks of its server, and what is said where that fails.

const STORED = "clipautt-key";
let key = remembered(), keyEntered = null;

// Why there is no answer: the server's own words, and what to do.
export class Problem extends Error {
  constructor({ code, detail, help = "", retry = null, status = 0 }) {
    super(detail);
    Object.assign(this, { code, help, retry, status });
  }
}

const SILENT = {
  code: "silent",
  detail: "The server does not answer, or closed the connection",
  help: "Look whether `clipautt serve` still runs and whether you are connected to it, then try again",
};

function remembered() {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null; // Storage may be forbidden; the key then lasts until the page is left.
  }
}

export function theKey() {
  return key;
}

export function setKey(value) {
  key = value || null;
  try {
    if (key) sessionStorage.setItem(STORED, key);
    else sessionStorage.removeItem(STORED);
  } catch { /* as above */ }
}

// `ask(problem)` is called where a key is needed and returns a promise that is kept once it was entered.
export function askForKeysWith(ask) {
  keyEntered = ask;
}

// Repeats `attempt` with a new key for as long as the server wants one.
export async function withKey(attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (problem) {
      if (!problem.code?.startsWith("key_") || problem.code === "key_scope" || !keyEntered) throw problem;
      await keyEntered(problem);
    }
  }
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function problemOf(status, body, retry) {
  const seconds = Number(retry);
  const wait = retry && seconds > 0 ? seconds : null;
  const detail = typeof body?.detail === "string" ? body.detail : `The server answered with status ${status}`;
  const code = body?.code ?? (status === 401 ? "key_missing" : "unknown");
  return new Problem({ code, detail, help: body?.help ?? "", retry: wait, status });
}

export function ask(path, options = {}) {
  return withKey(async () => {
    let response;
    try {
      response = await fetch(path, { ...options, headers: headers() });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Problem(SILENT);
    }
    const body = await response.json().catch(() => null);
    if (!response.ok) throw problemOf(response.status, body, response.headers.get("retry-after"));
    return body;
  });
}

// Sends a form; `told(share)` hears how much of it has left, 0 to 1. XMLHttpRequest, as fetch does not tell.
export function send(method, path, form, { told = () => {}, signal = null } = {}) {
  return withKey(() => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => told(total ? loaded / total : 0);
    request.upload.onload = () => told(1);
    request.onerror = () => reject(new Problem(SILENT));
    request.onabort = () => reject(new DOMException("stopped by the person", "AbortError"));
    request.onload = () => {
      let body = null;
      try {
        body = JSON.parse(request.responseText);
      } catch { /* a proxy's page, say; the status speaks */ }
      if (request.status >= 200 && request.status < 300 && body) resolve(body);
      else reject(problemOf(request.status, body, request.getResponseHeader("retry-after")));
    };
    if (signal?.aborted) return reject(new DOMException("stopped by the person", "AbortError"));
    signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form);
  }));
}

// The path of a subject. A name of dots alone would be taken for a folder's by every browser.
export function subjectPath(subject) {
  if (/^\.{1,2}$/.test(subject)) {
    throw new Problem({ code: "wrong_field", detail: `${subject} cannot be a person's name here`, help: "Choose another name" });
  }
  return `v1/subjects/${encodeURIComponent(subject)}`;
}

export function pause(seconds) {
  return new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });
}
