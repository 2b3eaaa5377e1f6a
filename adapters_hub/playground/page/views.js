// Tabs that look at the text under several blends, side by side.

import { el, fixed, marked, row, tokens } from "/draw.js";

const FAST = 2500; // milliseconds: what takes longer waits for its button
const OTHERS = [
  "The breakfast was cold and late.", "Morgenmaden var kold og kom for sent.",
  "Сніданок був холодний.", "早餐又冷又晚。", "朝食は冷たかったです。", "كان الإفطار باردًا.",
  "อาหารเช้าเย็นชืด", "My card was charged twice.", "Das Programm stürzt beim Start ab.",
];

export function textViews(page) {
  return [goOn(page), read(page), classify(page), answer(page), tag(page), nearest(page)];
}

const blends = (shown) => shown.map((column) => column.blend);

/** Columns side by side: a card a blend, filled by what `fill(column, result)` gives. */
function cards(shown, results, fill) {
  return shown.map((column, place) => {
    const result = results?.[place];
    const detail = el("footer", { "aria-live": "polite" });
    const body = result?.error
      ? el("p", { className: "problem" }, result.error)
      : fill(column, result, detail);
    return el("article", { className: column.mine ? "card mine" : "card", "aria-label": column.label },
      el("header", {}, el("span", { className: "code" }, column.label), column.mine ? el("small", {}, "yours") : null),
      body, result?.error ? null : detail);
  });
}

const legend = () => el("p", { className: "legend" },
  el("span", {}, "less likely than bare"), el("i", { "aria-hidden": "true" }), el("span", {}, "more likely"),
  el("span", {}, "Point at a token, or go through them by arrow keys, for its probability."));

/** The mean bits that a blend saved a token of its text, against bare. */
function saved(pieces) {
  const known = pieces.filter((piece) => piece.bits !== null);
  if (!known.length) return "";
  const mean = known.reduce((sum, piece) => sum + piece.bare - piece.bits, 0) / known.length;
  return Math.abs(mean) < 0.005 ? "" : `each token ${fixed(Math.abs(mean), 2)} bits ${mean > 0 ? "likelier" : "less likely"} than on bare`;
}

function goOn(page) {
  let box, button, temperature, length, seed, repeats, last = 0;
  const ask = page.newest(async (signal, shown) => page.api("continue", {
    text: page.text(), blends: blends(shown), length: +length.value, temperature: +temperature.value,
    seed: +seed.value, no_repeats: repeats.checked,
  }, signal));
  async function run(shown) {
    if (!page.text().trim()) { box.replaceChildren(); return; }
    const began = performance.now();
    for (const card of box.children) card.classList.add("waiting");
    const answer = await ask(shown);
    if (!answer) return;
    last = performance.now() - began;
    box.replaceChildren(...cards(shown, answer.columns, (column, result, detail) => {
      detail.textContent = result.pieces ? saved(result.pieces) : "";
      if (!result.pieces) return el("div", { className: "tokens", dir: "auto", lang: column.language }, result.text);
      return tokens(result.pieces, column.language, { set textContent(text) { detail.textContent = text || saved(result.pieces); } });
    }));
    box.dataset.done = String(+(box.dataset.done ?? 0) + 1);
  }
  const labelled = (name, input) => {
    const shown = el("output", {}, input.value);
    input.addEventListener("input", () => { shown.textContent = input.value; page.changed(); });
    return el("label", {}, name, input, shown);
  };
  return {
    id: "continue", title: "Continue",
    make() {
      length = el("input", { type: "range", min: 5, max: 120, step: 5, value: 30 });
      temperature = el("input", { type: "range", min: 0, max: 1.5, step: 0.1, value: 0 });
      seed = el("input", { type: "number", min: 0, max: 9999, value: 0, oninput: page.changed });
      repeats = el("input", { type: "checkbox", checked: true, onchange: page.changed });
      button = el("button", { type: "button", className: "main", id: "go", onclick: () => page.guarded(() => run(page.columns())) }, "Continue the text");
      box = el("div", { className: "columns", id: "continued" });
      return [el("div", { className: "options" }, button, labelled("tokens", length),
        labelled("temperature", temperature), el("label", {}, "seed", seed), el("label", {}, repeats, "no repeats")), box, legend()];
    },
    update: async (shown) => { if (last < FAST) await run(shown); },
  };
}

function read(page) {
  let box;
  return {
    id: "read", title: "Read",
    make() {
      box = el("div", { className: "columns", id: "readings" });
      return [el("p", { className: "quiet" }, "Your text itself: which tokens the adapters expect more, or less, than the bare backbone."), box, legend()];
    },
    async update() {
      const reading = page.reading;
      if (!reading) { box.replaceChildren(); return; }
      box.replaceChildren(...cards(reading.shown, reading.columns, (column, result, detail) => {
        const total = `${fixed(result.bits, 1)} bits, ${fixed(result.bits_per_byte, 3)} a byte`;
        detail.textContent = total;
        return tokens(result.pieces, page.textLanguage(), { set textContent(text) { detail.textContent = text || total; } });
      }));
    },
  };
}

/** A tab that asks one view, again whenever something changes. */
function simple(page, { id, title, note, inputs = () => [], body = () => ({}), fill }) {
  let box;
  const ask = page.newest(async (signal, shown) =>
    page.api(id, { text: page.text(), blends: blends(shown), ...body() }, signal));
  return {
    id, title,
    make() {
      box = el("div", { className: "columns", id: `columns-${id}` });
      return [el("p", { className: "quiet" }, note), ...inputs(), box];
    },
    async update() {
      if (!page.text().trim()) { box.replaceChildren(); return; }
      const shown = withHead(page, id);
      const answer = await ask(shown);
      if (answer) box.replaceChildren(...cards(shown, answer.columns, fill));
    },
  };
}

const TASKS = { classify: "classification", answer: "question-answering", tag: "token-classification" };

/** Columns for a task: each adapter that has its head, over the language's, and yours. */
function withHead(page, id) {
  const task = TASKS[id];
  if (!task) return page.columns();
  const heads = page.state.library.adapters.filter((info) => info.task === task).slice(0, 3);
  const language = document.getElementById("language").value;
  const list = heads.flatMap(({ name }) => [{ [name]: 1 }, ...(language && language !== name ? [{ [language]: 1, [name]: 1 }] : [])]);
  const yours = page.mine();
  const key = (blend) => JSON.stringify(Object.entries(blend).sort());
  const place = list.findIndex((blend) => key(blend) === key(yours));
  if (place < 0) list.push(yours);
  const at = place < 0 ? list.length - 1 : place;
  return list.map((blend, number) => ({ blend, label: page.written(blend), mine: number === at, language: page.textLanguage() }));
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;

const classify = (page) => simple(page, {
  id: "classify", title: "Classify", note: "The text's labels. One adapter of a blend has the head.",
  fill: (column, result) => el("div", {}, result.labels.slice(0, 12).map((one, place) => row(one.label, percent(one.score), one.score, place === 0))),
});

function answer(page) {
  let question, always;
  return simple(page, {
    id: "answer", title: "Answer", note: "The answer to a question, marked in its text.",
    inputs() {
      question = el("input", { type: "text", dir: "auto", value: "What was clean?", oninput: page.changed, "aria-label": "Question" });
      always = el("input", { type: "checkbox", onchange: page.changed });
      return [el("div", { className: "options" }, el("label", {}, "Question", question), el("label", {}, always, "always give a span"))];
    },
    body: () => ({ question: question.value, always: always.checked }),
    fill(column, result, detail) {
      detail.textContent = result.text ? `“${result.text}”, ${percent(result.score)}` : `no answer, ${percent(result.score)}`;
      return marked(page.text(), result.spans, page.textLanguage());
    },
  });
}

const tag = (page) => simple(page, {
  id: "tag", title: "Tag", note: "Spans of the text, with their labels.",
  fill(column, result, detail) {
    detail.textContent = result.spans.length ? `${result.spans.length} spans` : "no span";
    return marked(page.text(), result.spans, page.textLanguage());
  },
});

function nearest(page) {
  let others;
  return simple(page, {
    id: "nearest", title: "Nearest", note: "Texts ranked by the cosine of their embedding with your text's.",
    inputs() {
      others = el("textarea", { rows: 5, dir: "auto", value: OTHERS.join("\n"), oninput: page.changed, "aria-label": "Texts to rank, one a line" });
      return [el("details", {}, el("summary", { className: "quiet" }, "Texts to rank, one a line ▾"), others)];
    },
    body: () => ({ texts: others.value.split("\n") }),
    fill: (column, result) => el("div", {}, result.texts.slice(0, 12).map((one, place) => row(one.text, fixed(one.cosine, 3), one.cosine, place === 0))),
  });
}
