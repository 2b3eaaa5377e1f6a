// Tabs about the adapters themselves: two compared, a matrix, training, export.

import { chart, el, fixed, signed } from "/draw.js";

export const libraryViews = (page) => [compare(page), matrix(page), train(page), exportBlend(page)];

const option = (value, name = value) => el("option", { value }, name);

// ── compare ─────────────────────────────────────────────────────────────────────────────────────

const PANELS = [
  ["Energy", "‖ΔW‖, Frobenius norm", [["energy_first", "one"], ["energy_second", "two"]], {}],
  ["Direction", "cosine of the deltas", [["cosine", "one"]], { level: 0, least: 0.1 }],
  ["Shared subspace", "overlap above random", [["overlap_left", "one", "outputs"], ["overlap_right", "two", "inputs"]], { level: 0, least: 0.1 }],
  ["Signs", "share of opposite signs", [["sign_conflict", "one"]], { level: 0.5, least: 0.05 }],
];

function compare(page) {
  let first, second, box;
  const ask = page.newest(async (signal) => page.api("profile", { first: first.value, second: second.value }, signal));
  function fill() {
    const names = page.state.library.adapters.map((info) => info.name);
    for (const [select, wanted] of [[first, document.getElementById("language").value], [second, document.getElementById("domain").value]]) {
      const before = select.value || wanted;
      select.replaceChildren(...names.map((name) => option(name)));
      if (names.includes(before)) select.value = before;
    }
  }
  async function show() {
    if (!first.value) return;
    const report = await ask();
    if (!report) return;
    const depths = report.depths.map((depth) => (/\d+$/.exec(depth.depth) ?? ["–"])[0]);
    const ticks = depths.map((name, place) => [place, name]).filter((_, place) => place % Math.ceil(depths.length / 8) === 0);
    const figures = PANELS.map(([title, unit, lines, options]) => {
      const named = (line, place) => line[2] ?? (lines.length > 1 ? [report.first, report.second][place] : title);
      const drawn = lines.map((line, place) => ({
        className: line[1], name: named(line, place),
        points: report.depths.map((depth, at) => [at, depth[line[0]]]),
      })).filter((line) => line.points.some((point) => point[1] !== null));
      if (!drawn.length) return null;
      const keys = lines.length > 1 ? lines.map((line, place) => el("span", { className: line[1] === "one" ? "key" : "key two" }, named(line, place))) : [];
      return el("figure", {}, el("figcaption", {}, title, el("span", {}, unit, ...keys)), chart(`${title} by layer`, drawn, { ...options, ticks }));
    });
    const shown = PANELS.flatMap((panel) => panel[2].map((line) => line[0]));
    box.replaceChildren(el("div", { className: "figures", id: "profile" }, figures.filter(Boolean)),
      el("p", { className: "said quiet" }, report.verdict),
      el("details", {}, el("summary", { className: "quiet" }, "The numbers ▾"), el("div", { className: "scroll" }, el("table", {},
        el("tr", {}, el("th", {}, "layer"), shown.map((name) => el("th", {}, name.replaceAll("_", " ")))),
        [...report.depths, { depth: "all", ...report.total }].map((depth) => el("tr", {}, el("th", {}, depth.depth),
          shown.map((name) => el("td", {}, depth[name] === null ? "" : fixed(depth[name], 4)))))))));
  }
  const again = () => page.guarded(show);
  return {
    id: "compare", title: "Compare",
    make() {
      first = el("select", { onchange: again });
      second = el("select", { onchange: again });
      box = el("div", { className: "job" });
      return [el("div", { className: "options" }, el("label", {}, "First", first), el("label", {}, "Second", second)), box];
    },
    async update(shown, opened) {
      fill();
      if (opened) await show();
    },
  };
}

// ── matrix ──────────────────────────────────────────────────────────────────────────────────────

const GAINS = { composition_gain: "over the better single adapter", gain: "over bare" };

function matrix(page) {
  let method, what, box;
  function show() {
    const cells = page.state.library.matrix.filter((cell) => cell.composed[method.value]);
    const domains = [...new Set(cells.map((cell) => cell.domain ?? "–"))];
    const tags = [...new Set(cells.map((cell) => cell.language))];
    const value = (cell) => cell.composed[method.value][what.value];
    const limit = Math.max(...cells.map((cell) => Math.abs(value(cell).mean))) || 1;
    const find = (tag, domain) => cells.find((cell) => cell.language === tag && (cell.domain ?? "–") === domain);
    box.replaceChildren(el("table", { className: "heat" },
      el("tr", {}, el("th", {}), domains.map((domain) => el("th", { scope: "col" }, domain))),
      tags.map((tag) => el("tr", {}, el("th", { scope: "row" }, tag), domains.map((domain) => {
        const cell = find(tag, domain);
        if (!cell) return el("td", {});
        const gain = value(cell), sure = gain.low > 0 || gain.high < 0;
        return el("td", {}, el("button", {
          type: "button", className: sure ? "sure" : undefined, onclick: () => openCell(page, cell, method.value),
          "--tone": gain.mean >= 0 ? "var(--more)" : "var(--less)", "--depth": `${(Math.abs(gain.mean) / limit * 70).toFixed(0)}%`,
          "aria-label": `${tag}, ${domain}: ${signed(gain.mean, 3)}; open`,
        }, signed(gain.mean, 3)));
      })))));
  }
  return {
    id: "matrix", title: "Matrix",
    make() {
      const methods = [...new Set(page.state.library.matrix.flatMap((cell) => Object.keys(cell.composed)))];
      method = el("select", { onchange: show }, methods.map((name) => option(name)));
      what = el("select", { onchange: show }, Object.entries(GAINS).map(([name, words]) => option(name, words)));
      box = el("div", { className: "scroll" });
      const { metric = "", source = "" } = page.state.library.matrix[0] ?? {};
      return [el("p", { className: "quiet" }, `Gain of the composed adapters in ${metric}, task trained in ${source}; above 0 it helps. Bold: the 95% interval excludes 0. Open a cell for all of its numbers.`),
        el("div", { className: "options" }, el("label", {}, "Method", method), el("label", {}, "Gain", what)), box];
    },
    async update() { show(); },
  };
}

function openCell(page, cell, method) {
  const dialog = document.getElementById("cell");
  const composed = cell.composed[method];
  const line = (name, value) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, fixed(value.mean, 3)), el("td", {}, `${fixed(value.low, 3)} to ${fixed(value.high, 3)}`));
  const known = [cell.adapters.language, ...cell.adapters.domain].filter((name) => name && page.adapter(name));
  dialog.replaceChildren(
    el("h2", { id: "cell-title" }, `${cell.language} · ${cell.domain ?? "no domain"}`),
    el("p", { className: "quiet" }, `${cell.task}, ${cell.metric}, ${cell.higher_is_better ? "higher" : "lower"} is better; ${cell.rows.test} test rows, ${cell.seeds.length} seeds, ${cell.backbone}`),
    el("div", { className: "scroll" }, el("table", {},
      el("tr", {}, el("th", {}, "blend"), el("th", {}, "mean"), el("th", {}, "95%")),
      Object.entries(cell.columns).map(([name, column]) => line(name, column)))),
    el("p", { className: "quiet" }, `${method} over bare ${signed(composed.gain.mean, 3)}; over the better single adapter (${cell.best_single}) ${signed(composed.composition_gain.mean, 3)} [${signed(composed.composition_gain.low, 3)}, ${signed(composed.composition_gain.high, 3)}]${composed.helps ? ": helps" : composed.hurts ? ": hurts" : ""}.`),
    el("div", { className: "end" },
      known.length ? el("button", { type: "button", className: "main", onclick: () => {
        for (const name of [...page.state.weights.keys()]) page.setWeight(name, 0);
        for (const name of known.slice(0, 2)) page.setWeight(name, 1);
        page.changed();
        dialog.close();
      } }, "Take as your blend") : null,
      el("button", { type: "button", className: "plain", onclick: () => dialog.close() }, "Close")));
  dialog.showModal();
}

// ── train ───────────────────────────────────────────────────────────────────────────────────────

const SAMPLE = ["The check-in took an hour.", "Breakfast was cold and the coffee weak.", "A quiet room with a view of the sea.",
  "The staff at the desk were kind.", "Our key did not open the door.", "The pool was closed the whole week.",
  "Clean sheets, soft towels, good sleep.", "The lift was broken, with five floors to climb.", "We would come back for the terrace.",
  "The room smelled of smoke.", "They carried our bags to the taxi.", "Too loud: the bar is under the bedroom."].join("\n");
const TASKS = ["language-modeling", "classification", "question-answering", "token-classification", "retrieval", "generation"];
const RUNNING = ["starting", "training", "storing", "stopping"];

function clock(seconds) {
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

function train(page) {
  const field = {};
  let button, stop, box, timer = 0, seen = null;
  const input = (name, label, node, wide) => {
    field[name] = node;
    return el("label", { className: wide ? "wide" : undefined }, label, node);
  };
  function order() {
    const value = (name) => field[name].value;
    return {
      name: value("name").trim(), kind: value("kind"), task: value("task"), language: value("language"),
      domain: value("kind") === "domain" ? value("name").trim() : "", rows: value("rows"), format: value("format"),
      columns: value("columns"), steps: +value("steps"), rank: +value("rank"), learning_rate: +value("rate"),
      batch_size: +value("batch"), replace: field.replace.checked,
    };
  }
  function show(job) {
    const running = RUNNING.includes(job.state);
    button.disabled = running;
    stop.hidden = !running;
    stop.disabled = job.state === "stopping" || job.state === "storing";
    if (job.state === "none") return;
    const words = {
      starting: `Loading the backbone for ${job.name} …`,
      training: `Training ${job.name}: step ${job.step} of ${job.steps}${job.left === null ? "" : `, ${clock(job.left)} left`}`,
      storing: `Storing ${job.name} …`, stopping: `Stopping ${job.name} …`,
    }[job.state] ?? (job.state === "done" ? `Done in ${clock(job.seconds)}: ${job.message}.` : job.message);
    const curves = job.loss.length > 1
      ? el("figure", {}, el("figcaption", {}, "Loss by step", el("span", {}, el("span", { className: "key" }, "nats a target"))),
        chart("Loss by step", [{ className: "one", name: "loss", points: job.loss }], { height: 120 }))
      : null;
    const tested = Object.entries(job.scores).map(([name, score]) => `${name} ${fixed(score, 3)}`).join(", ");
    const { train = 0, dev = 0, test = 0 } = job.rows;
    const notes = [
      train ? `${train} rows to learn from, ${dev} to choose the best state by, ${test} to test on${job.over.length ? `; over the adapter of ${job.over.join(", ")}` : ""}.` : "",
      job.best ? `To choose by, ${job.metric}: ${fixed(job.dev[0][1], 3)} after step ${job.dev[0][0]}, best ${fixed(job.best[1], 3)} after step ${job.best[0]}.` : "",
      tested ? `On the test rows, ${job.metric}: ${tested}.` : "",
    ].filter(Boolean);
    box.replaceChildren(
      el("p", { role: "status", className: job.state === "failed" ? "problem" : undefined }, words),
      el("progress", { max: job.steps, value: job.state === "done" ? job.steps : job.step, "aria-label": "Progress" }),
      ...notes.map((note) => el("p", { className: "quiet" }, note)), ...(curves ? [curves] : []));
  }
  async function watch() {
    clearTimeout(timer);
    const job = await page.api("job");
    show(job);
    if (seen && RUNNING.includes(seen) && job.state === "done") {
      await page.reload();
      page.setWeight(job.name, 1);
      page.changed();
    }
    seen = job.state;
    if (RUNNING.includes(job.state)) timer = setTimeout(() => page.guarded(watch), 700);
  }
  async function takeFile(event) {
    const file = event.target.files[0];
    if (!file) return;
    field.rows.value = await file.text();
    const ending = file.name.split(".").pop().toLowerCase();
    field.format.value = { csv: "csv", tsv: "tsv", jsonl: "jsonl", json: "jsonl" }[ending] ?? "txt";
  }
  return {
    id: "train", title: "Train",
    make() {
      const number = (value, min, step = 1) => el("input", { type: "number", value, min, step });
      button = el("button", { type: "button", className: "main", id: "train", onclick: () => page.guarded(async () => {
        await page.api("job", order());
        seen = "starting";
        await watch();
      }) }, "Train on these rows");
      stop = el("button", { type: "button", className: "plain", id: "stop", hidden: true, onclick: () => page.guarded(async () => show(await page.api("job/stop", {}))) }, "Stop");
      box = el("div", { className: "job", id: "job" });
      return [el("p", { className: "quiet said" }, "An adapter learns from the rows below, in a process of its own; meanwhile the page goes on. What it learnt is added to the library, and to your sliders."),
        el("div", { className: "form" },
          input("name", "Name", el("input", { type: "text", value: "mine" })),
          input("kind", "It is for a", el("select", {}, option("domain", "domain"), option("language", "language"))),
          input("language", "Language of the rows", el("input", { type: "text", value: "en", placeholder: "as the rows say" })),
          input("task", "Task", el("select", {}, TASKS.map((name) => option(name)))),
          input("steps", "Steps", number(40, 1)), input("rank", "Rank", number(8, 1)),
          input("batch", "Rows a step", number(8, 1)), input("rate", "Learning rate", number(0.001, 0, 0.0001)),
          input("rows", "Rows: a text a line, or JSON Lines, CSV, TSV with a column text (and label, …)", el("textarea", { dir: "auto", value: SAMPLE, spellcheck: false }), true),
          input("format", "Format", el("select", {}, option("txt", "a text a line"), option("jsonl", "JSON Lines"), option("csv", "CSV"), option("tsv", "TSV"))),
          input("columns", "Columns", el("input", { type: "text", placeholder: "text=review label=stars" })),
          el("label", {}, "From a file", el("input", { type: "file", accept: ".txt,.jsonl,.json,.csv,.tsv", onchange: takeFile })),
          el("label", { className: "check" }, (field.replace = el("input", { type: "checkbox" })), "replace one of this name")),
        el("div", { className: "options" }, button, stop), box];
    },
    update: async (shown, opened) => { if (opened) await watch(); },
  };
}

// ── export ──────────────────────────────────────────────────────────────────────────────────────

function exportBlend(page) {
  let name, method, format, said;
  async function download() {
    const answer = await page.api("export", { blend: page.mine(), name: name.value.trim(), method: method.value, format: format.value });
    const file = decodeURIComponent(answer.headers.get("Content-Disposition").split("''")[1]);
    const content = await answer.blob();
    const address = URL.createObjectURL(content);
    el("a", { href: address, download: file }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
    said.textContent = `${file}, ${(content.size / 1024).toFixed(0)} KiB. Plain PEFT loads it, and adapters-hub add takes it back.`;
  }
  return {
    id: "export", title: "Export",
    make() {
      name = el("input", { type: "text", value: "my-blend" });
      method = el("select", {}, page.state.library.methods.map((one) => option(one)));
      format = el("select", {}, option("folder", "PEFT folder, zipped"), option("file", "one .safetensors file"));
      said = el("p", { className: "quiet", role: "status" });
      return [el("p", { className: "quiet said" }, "Your blend as one standard adapter. The sum is exact; other methods are those of adapters-hub compose."),
        el("div", { className: "options" }, el("label", {}, "Name", name), el("label", {}, "Method", method), el("label", {}, "As", format),
          el("button", { type: "button", className: "main", id: "download", onclick: () => page.guarded(download) }, "Download")), said];
    },
    update: async () => { said.textContent = `Your blend: ${page.written(page.mine())}`; },
  };
}
