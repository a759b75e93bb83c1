"use strict";
// Settings may be given in the address: experiment.html?observer=ab&repeats=5&seed=1
const facts = JSON.parse(document.getElementById("facts").textContent);
const asked = new URLSearchParams(location.search);
const columns = ["observer", "trial", "stimulus", "correct", "response", "interval", "rt", "manifest"];
const clean = (text) => String(text || "").replace(/[^A-Za-z0-9_-]/g, "").slice(0, 40);
const whole = (text, usual) => (/^[1-9][0-9]{0,4}$/.test(text || "") ? Number(text) : usual);
const repeats = whole(asked.get("repeats"), facts.repeats);
let observer = clean(asked.get("observer"));
let count = 0;
let target = 1;

// Safe mode is for sounds and films that a page from the disk could not load; here are pictures.
const jsPsych = initJsPsych({ on_finish: finish, override_safe_mode: true });
if (/^[0-9]{1,9}$/.test(asked.get("seed") || "")) jsPsych.randomization.setSeed(asked.get("seed"));

function answers() {
  return jsPsych.data.get().filter({ part: "answer" }).filterColumns(columns);
}

function finish() {
  const name = `trials-${observer}-${new Date().toISOString().slice(0, 19).replace(/[-:]/g, "")}.csv`;
  const text = answers().csv();
  const link = document.createElement("a");
  link.className = "save";
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.textContent = `Save ${name}`;
  const box = document.createElement("p");
  box.append(link);
  const said = document.createElement("p");
  said.textContent = `That was all, ${count} trials. Thank you! The answers are saved as a file; if not, touch its name.`;
  const display = jsPsych.getDisplayElement();
  display.replaceChildren(said, box);
  display.style.flexDirection = "column";
  if (count) link.click();
}

// Keys do what the buttons do: 1, 2, … on the keyboard.
function keys(event) {
  const buttons = document.querySelectorAll("button.answer");
  const place = Number(event.key) - 1;
  if (!event.repeat && Number.isInteger(place) && buttons[place]) buttons[place].click();
}

// Before an interval; the first of a trial draws in which one the changed picture is.
function blank(number) {
  return {
    type: jsPsychHtmlButtonResponse,
    stimulus: '<div class="point">+</div>',
    choices: [],
    trial_duration: 500,
    on_start: () => {
      if (number === 1) target = jsPsych.randomization.randomInt(1, facts.intervals);
    },
  };
}

function interval(number) {
  return {
    type: jsPsychImageKeyboardResponse,
    stimulus: () => jsPsych.evaluateTimelineVariable(number === target ? "file" : "reference"),
    stimulus_width: () => facts.zoom * jsPsych.evaluateTimelineVariable("width"),
    stimulus_height: () => facts.zoom * jsPsych.evaluateTimelineVariable("height"),
    maintain_aspect_ratio: false,
    render_on_canvas: false,
    choices: "NO_KEYS",
    trial_duration: facts.duration * 1000,
  };
}

const numbers = Array.from({ length: facts.intervals }, (_, i) => i + 1);
const question = {
  type: jsPsychHtmlButtonResponse,
  stimulus: "<p>Which one was different?</p>",
  choices: numbers.map(String),
  button_html: (choice) => `<button class="answer" type="button">${choice}</button>`,
  prompt: '<button class="stop" type="button">Stop and save</button>',
  on_load: () => {
    document.addEventListener("keydown", keys);
    document.querySelector("button.stop").addEventListener("click", () => {
      document.removeEventListener("keydown", keys);
      jsPsych.abortExperiment();
    });
  },
  on_finish: (data) => {
    document.removeEventListener("keydown", keys);
    if (data.response === null || data.response === undefined) return;
    count += 1;
    const answer = Number(data.response) + 1;
    Object.assign(data, {
      part: "answer",
      observer: observer,
      trial: count,
      stimulus: jsPsych.evaluateTimelineVariable("id"),
      correct: answer === target ? 1 : 0,
      response: answer,
      interval: target,
      rt: data.rt / 1000,
      manifest: facts.manifest,
    });
  },
};

const procedure = {
  timeline: [...numbers.flatMap((number) => [blank(number), interval(number)]), question],
  timeline_variables: facts.stimuli,
  repetitions: repeats,
  randomize_order: true,
};

const wide = facts.zoom * Math.max(...facts.stimuli.map((one) => one.width));
const narrow = wide > document.documentElement.clientWidth
  ? `<p class="small">The pictures are ${wide} pixels wide, more than this screen shows at once: turn it, or use a larger one.</p>`
  : "";
const welcome = {
  type: jsPsychHtmlButtonResponse,
  stimulus: () => `<p>You will see ${facts.intervals} pictures one after another. One of them is different.</p>
    <p>Touch its number, or press the key. Guess when you do not know.</p>${narrow}
    <p><label>Your code: <input id="observer" autocomplete="off" maxlength="40" value="${observer}"></label></p>`,
  choices: ["Begin"],
  on_load: () => {
    const field = document.getElementById("observer");
    const read = () => { observer = clean(field.value); };
    field.addEventListener("input", read);
  },
  on_finish: () => { observer = observer || "observer"; },
};

jsPsych.run([
  {
    type: jsPsychPreload,
    images: facts.files,
    auto_preload: false,
    error_message: "<p>Some pictures are missing: keep this page in the folder with <b>pictures</b>.</p>",
    message: "<p>Loading the pictures …</p>",
  },
  welcome,
  procedure,
]);
