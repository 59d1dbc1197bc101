// Papa Parse, loaded when the first file is read or written.

import { el } from "./dom.js";

let loading = null;

export function withPapa() {
  loading ??= new Promise((resolve, reject) => {
    const script = el("script", { src: "/ui/static/vendor/papaparse.min.js" });
    script.addEventListener("load", () => resolve(window.Papa));
    script.addEventListener("error", () => {
      loading = null;
      reject(new Error("The reader of CSV files could not be loaded; is the server running?"));
    });
    document.head.append(script);
  });
  return loading;
}
