"use strict";
// Draws picture + a·e on a canvas from the embedded values, at the strength of its slider.
(() => {
  const SMALLEST = 0.001, LARGEST = 1; // strength: root mean square over the picture's range
  const strengthOf = (place) =>
    place <= 0 ? 0 : SMALLEST * Math.pow(LARGEST / SMALLEST, place / 1000);
  const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;

  const bytes = (text) => {
    const binary = atob(text);
    const out = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i += 1) out[i] = binary.charCodeAt(i);
    return new DataView(out.buffer);
  };

  const runs = new Map();
  for (const element of document.querySelectorAll("script.data")) {
    const data = JSON.parse(element.textContent);
    const view = bytes(data.picture);
    const picture = new Float32Array(view.byteLength / 2);
    for (let i = 0; i < picture.length; i += 1) picture[i] = view.getUint16(2 * i, true) / 65535;
    runs.set(element.id.replace(/-data$/, ""), { data, picture, distortions: new Map() });
  }

  // A distortion in units of the picture's range, for a strength of 1.
  const distortionOf = (run, pair) => {
    if (!run.distortions.has(pair)) {
      const { peak, samples } = run.data.distortions[pair];
      const view = bytes(samples);
      const unit = new Float32Array(view.byteLength / 2);
      const factor = (peak / 32767) * Math.sqrt(run.data.pixels);
      for (let i = 0; i < unit.length; i += 1) unit[i] = factor * view.getInt16(2 * i, true);
      run.distortions.set(pair, unit);
    }
    return run.distortions.get(pair);
  };

  const draw = (canvas, strength) => {
    const run = runs.get(canvas.dataset.run);
    const { width, height, channels } = run.data;
    const unit = distortionOf(run, canvas.dataset.pair);
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    let clipped = 0;
    for (let p = 0; p < width * height; p += 1) {
      for (let c = 0; c < 3; c += 1) {
        const i = channels === 3 ? 3 * p + c : p;
        const value = run.picture[i] + strength * unit[i];
        if (c < channels && (value < -1e-4 || value > 1.0001)) clipped += 1;
        image.data[4 * p + c] = Math.round(255 * Math.min(1, Math.max(0, value)));
      }
      image.data[4 * p + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    return clipped / (width * height * channels);
  };

  const show = (slider) => {
    const { run: name, pair } = slider.dataset;
    const card = slider.closest(".card");
    const canvas = card.querySelector("canvas");
    const strength = strengthOf(Number(slider.value));
    const clipped = draw(canvas, strength);
    const { low, high, pixels } = runs.get(name).data;
    const scale = strength * (high - low) * Math.sqrt(pixels);
    const response = scale * Number(canvas.dataset.gain);
    document.getElementById(`${name}-${pair}-value`).textContent = percent(strength);
    const parts = [`a = ${scale.toPrecision(3)}`, `d′ = a√λ ≈ ${response.toPrecision(3)}`];
    if (clipped > 0.0005) parts.push(`${percent(clipped)} of the values clipped`);
    document.getElementById(`${name}-${pair}-reading`).textContent = parts.join(" · ");
  };

  const slidersOf = (name) =>
    [...document.querySelectorAll("input.scale")].filter((s) => s.dataset.run === name);

  for (const canvas of document.querySelectorAll("canvas[data-pair]")) {
    const { data } = runs.get(canvas.dataset.run);
    canvas.width = data.width;
    canvas.height = data.height;
    canvas.hidden = false;
    canvas.parentElement.querySelector(".still").hidden = true;
    const slider = canvas.closest(".card").querySelector("input.scale");
    const hide = () => draw(canvas, 0);
    const back = () => draw(canvas, strengthOf(Number(slider.value)));
    canvas.addEventListener("pointerdown", hide);
    for (const name of ["pointerup", "pointerleave", "pointercancel"]) {
      canvas.addEventListener(name, back);
    }
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }
  for (const slider of document.querySelectorAll("input.scale")) {
    slider.addEventListener("input", () => show(slider));
    show(slider);
  }
  const setAll = (name, value) => {
    const master = document.getElementById(`${name}-all`);
    master.value = value;
    document.getElementById(`${name}-all-value`).textContent = percent(strengthOf(Number(value)));
    for (const slider of slidersOf(name)) {
      slider.value = value;
      show(slider);
    }
  };
  for (const master of document.querySelectorAll("input.master")) {
    master.addEventListener("input", () => setAll(master.dataset.run, master.value));
  }
  for (const button of document.querySelectorAll("button.reset")) {
    const start = document.getElementById(`${button.dataset.run}-all`).defaultValue;
    button.addEventListener("click", () => setAll(button.dataset.run, start));
  }
  // Paper has no folds.
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
