// The camera of this device, and in words why there is none.

import { Problem } from "./ask.js";

const REASONS = {
  NotAllowedError: ["The browser may not use the camera", "Allow it in the browser's address bar, then try again"],
  NotFoundError: ["No camera was found", "Connect one, or choose a file instead"],
  NotReadableError: ["The camera is used by another program", "Close that program, then try again"],
};

export async function openCamera(video) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Problem({
      code: "no_camera",
      detail: "The browser gives no camera to this address",
      help: "Open the page over TLS, or on the server's own computer; or choose a file instead",
    });
  }
  try {
    const wanted = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 25 }, facingMode: "user" };
    const stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    video.srcObject = stream;
    await video.play();
    return stream;
  } catch (error) {
    const [detail, help] = REASONS[error.name] ?? [`The camera does not start (${error.name})`, "Choose a file instead"];
    throw new Problem({ code: "no_camera", detail, help });
  }
}

export function closeCamera(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}
