// Elements and figures from data. Knows no address and no state of the page.

/** An element: properties, `class`, `data-…`, `aria-…` and handlers as given, then its children. */
export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name in node && !name.includes("-")) node[name] = value;
    else node.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
export const fixed = (value, digits = 2) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
export { signed };

/** A probability from bits, in words short enough for a line. */
function chance(bits) {
  const p = 2 ** -bits;
  if (p >= 0.1) return `${(100 * p).toFixed(0)} %`;
  if (p >= 0.001) return `${(100 * p).toFixed(1)} %`;
  return `1 in ${Math.round(1 / p).toLocaleString("en")}`;
}

const DEEPEST = 6; // bits at which a colour is as deep as it gets

/** Pieces of a text, coloured by the bits that the blend saved (more) or cost (less) over bare. */
export function tokens(pieces, language, detail) {
  const box = el("div", {
    className: "tokens", dir: "auto", lang: language || undefined, tabIndex: 0, role: "group",
    "aria-label": "Text by tokens; arrow keys go through them",
  });
  const spans = pieces.map((piece) => {
    const change = piece.bits === null ? 0 : piece.bare - piece.bits;
    const depth = Math.min(1, Math.abs(change) / DEEPEST);
    const known = Math.abs(change) > 0.05;
    const blank = piece.text.trim() ? /^\s*/.exec(piece.text)[0] : ""; // stays plain at a line's end
    const span = el("span", {
      className: piece.text ? undefined : "end",
      "data-way": known ? (change > 0 ? "more" : "less") : undefined,
      "--tone": known ? `var(--${change > 0 ? "more" : "less"})` : undefined,
      "--depth": `${(depth * 65).toFixed(0)}%`,
    }, piece.text.slice(blank.length) || "∎");
    box.append(blank, span);
    return span;
  });
  let now = -1;
  const show = (at) => {
    if (spans[now]) spans[now].classList.remove("now");
    now = at;
    if (!spans[now]) { detail.textContent = ""; return; }
    spans[now].classList.add("now");
    const piece = pieces[now];
    const name = piece.text ? `“${piece.text.trim() || "␣"}”` : "end of text";
    detail.textContent = piece.bits === null
      ? `${name} has nothing before it`
      : `${name} ${chance(piece.bits)}, bare ${chance(piece.bare)} (${signed(piece.bare - piece.bits, 1)} bits)`;
  };
  box.addEventListener("pointerover", (event) => {
    const at = spans.indexOf(event.target);
    if (at >= 0) show(at);
  });
  box.addEventListener("pointerleave", () => show(-1));
  box.addEventListener("blur", () => show(-1));
  box.addEventListener("keydown", (event) => {
    const rtl = getComputedStyle(box).direction === "rtl";
    const step = { ArrowRight: rtl ? -1 : 1, ArrowLeft: rtl ? 1 : -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(spans.length - 1, now < 0 && step < 0 ? 0 : now + step)));
  });
  return box;
}

/** A text with spans of it marked; places count characters, not UTF-16 units. */
export function marked(text, spans, language) {
  const letters = [...text];
  const box = el("div", { className: "tokens", dir: "auto", lang: language || undefined });
  let at = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    if (span.start < at) continue;
    box.append(letters.slice(at, span.start).join(""));
    box.append(el("mark", {}, letters.slice(span.start, span.end).join(""),
      span.label ? el("sup", {}, span.label) : null));
    at = span.end;
  }
  box.append(letters.slice(at).join(""));
  return box;
}

/** A named value with a bar of width 0 to 1. */
export function row(name, value, width, best, language) {
  return el("div", { className: best ? "row best" : "row" },
    el("div", {}, el("span", { dir: "auto", lang: language || undefined }, name), el("b", {}, value)),
    el("div", { className: "line" }, el("i", { "--w": Math.max(0, Math.min(1, width)) })));
}

const SVG = "http://www.w3.org/2000/svg";
function draw(tag, given, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** A line chart. `lines`: [{className, points: [[x, y], …]}]; `level`: a dashed line at this value. */
export function chart(title, lines, { level = null, ticks = null, least = 0, height = 130 } = {}) {
  const width = 340, left = 40, right = 8, top = 10, bottom = 20;
  const all = lines.flatMap((line) => line.points).filter((point) => point[1] !== null);
  const xs = all.map((point) => point[0]), ys = all.map((point) => point[1]);
  let low = Math.min(...ys, level ?? Infinity), high = Math.max(...ys, level ?? -Infinity);
  if (high - low < 2 * least) {
    const middle = level ?? (low + high) / 2;
    low = Math.min(low, middle - least); high = Math.max(high, middle + least);
  }
  if (low === high) { low -= 1; high += 1; }
  const first = Math.min(...xs), last = Math.max(...xs, first + 1);
  const x = (value) => left + ((value - first) / (last - first)) * (width - left - right);
  const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const digits = high - low < 0.5 ? 2 : high - low < 20 ? 1 : 0;
  for (const value of [low, (low + high) / 2, high]) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 6, y: y(value) + 3, "text-anchor": "end" }, fixed(value, digits)));
  }
  if (level !== null) {
    svg.append(draw("line", { class: "zero", x1: left, x2: width - right, y1: y(level), y2: y(level) }));
  }
  for (const [at, name] of ticks ?? [[first, first], [last, last]]) {
    svg.append(draw("text", { x: x(at), y: height - 5, "text-anchor": "middle" }, name));
  }
  for (const line of lines) {
    const points = line.points.filter((point) => point[1] !== null);
    const path = points.map((point, i) => `${i ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`);
    svg.append(draw("path", { class: line.className, d: path.join("") }));
    if (points.length > 40) continue;
    for (const point of points) {
      const dot = draw("circle", { class: line.className, cx: x(point[0]), cy: y(point[1]), r: 3 });
      dot.append(draw("title", {}, `${line.name ?? title}: ${fixed(point[1], 4)}`));
      svg.append(dot);
    }
  }
  return svg;
}
