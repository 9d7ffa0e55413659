// Guest-physical memory, drawn over the steps of a scenario.
const COLOURS = [
  "#f6c667",
  "#8ecdf2",
  "#6fcfb0",
  "#e0a8c6",
  "#f3ea7d",
  "#f0a070",
  "#9db7ee",
  "#b9d884",
];
const OWN = "#c9ced1";
const CELL = 22,
  ROW = 24,
  HEAD = 26,
  LEFT = 40,
  LABEL = 84,
  BREAK = 16;

// The slots after a step: those of the last step before it that changed them.
function slotsAfter(index) {
  for (let at = index; at >= 0; at--) if (now.steps[at].slots) return now.steps[at].slots;
  return [];
}
const isEnd = (each) => each.call.startsWith("the end");
const numberOf = (slot) => slot[0] * 65536 + slot[1];
function colours(steps) {
  const found = new Map();
  const own =
    steps.length && steps[0].origin < 0 && steps[0].slots ? steps[0].slots.map(numberOf) : [];
  for (const number of own) found.set(number, OWN);
  for (const each of steps)
    for (const slot of each.slots || []) {
      if (!found.has(numberOf(slot)))
        found.set(numberOf(slot), COLOURS[(found.size - own.length) % COLOURS.length]);
    }
  return found;
}

// Guest-physical memory as columns: within one, nothing differs at any step.
function columns(steps) {
  const lanes = new Map();
  const lane = (as) => lanes.get(as) || lanes.set(as, { ends: new Set(), spans: [] }).get(as);
  const span = (as, from, to) => {
    const l = lane(as);
    l.ends.add(from).add(to);
    l.spans.push([from, to]);
  };
  for (const each of steps) {
    for (const [as, , from, pages] of each.slots || []) span(as, from, from + pages);
    for (const [as, from, pages] of each.met || []) span(as, from, from + pages);
  }
  const found = [];
  let x = LEFT;
  for (const [as, { ends, spans }] of [...lanes].sort((a, b) => a[0] - b[0])) {
    const sorted = [...ends].sort((a, b) => a - b);
    spans.sort((a, b) => a[0] - b[0]);
    let next = 0,
      reach = -1,
      group = null;
    for (let at = 0; at + 1 < sorted.length; at++) {
      const from = sorted[at],
        to = sorted[at + 1];
      while (next < spans.length && spans[next][0] <= from)
        reach = Math.max(reach, spans[next++][1]);
      if (reach <= from) {
        group = null;
        continue;
      }
      if (group === null) {
        const last = found.length ? found[found.length - 1] : null;
        if (last) x = Math.max(x + BREAK, last.group.x + LABEL);
        group = { x, as, from };
      }
      const pages = to - from;
      const width = Math.round(
        pages === 1 ? CELL : CELL + 9 * Math.log2(pages) + Math.min(pages, 6) * 5,
      );
      found.push({ as, from, to, x, width, group });
      x += width;
    }
  }
  return {
    columns: found,
    width: Math.max(x, found.length ? found[found.length - 1].group.x + LABEL : 0) + 12,
  };
}

// The first and the last of the columns that make up a stretch of memory.
function covered(all, as, from, to) {
  const before = (column) => column.as < as || (column.as === as && column.from < from);
  let low = 0,
    high = all.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (before(all[middle])) low = middle + 1;
    else high = middle;
  }
  let last = low;
  while (last + 1 < all.length && all[last + 1].as === as && all[last + 1].to <= to) last++;
  return low < all.length && all[low].as === as && all[low].to <= to
    ? [all[low], all[last]]
    : [null, null];
}

function mark(access, what, x, y, on) {
  const off = on ? "" : " off";
  if (what === "stop")
    return draw("path", { class: "mark stop", d: `M${x - 3} ${y - 3}l6 6m0 -6l-6 6` });
  const ring = what === "mmio" ? " ring" : "";
  const name = "mark" + ring + off;
  if (access === "r") return draw("circle", { class: name, cx: x, cy: y, r: 3 });
  if (access === "w")
    return draw("rect", { class: name, x: x - 2.7, y: y - 2.7, width: 5.4, height: 5.4 });
  if (access === "i")
    return draw("path", { class: name, d: `M${x} ${y - 3.8}l3.8 3.8l-3.8 3.8l-3.8 -3.8z` });
  return draw("path", { class: name, d: `M${x - 3} ${y - 3.2}l6.4 3.2l-6.4 3.2z` });
}

function picture() {
  const steps = now.steps,
    palette = colours(steps);
  const { columns: all, width } = columns(steps);
  const height = HEAD + steps.length * ROW + 6;
  const scale = Math.max(1, Math.min(1.5, (main.clientWidth - 60) / width));
  const svg = draw("svg", {
    width: width * scale,
    height: height * scale,
    viewBox: `0 0 ${width} ${height}`,
    "aria-hidden": "true",
  });
  const rows = [];
  // The addresses and the numbers stay where the picture is scrolled.
  const head = draw("g", { class: "head" });
  head.append(draw("rect", { class: "ground", x: 0, y: 0, width, height: HEAD }));
  let previous = null;
  for (const { group } of all) {
    if (group === previous) continue;
    const space = group.as ? "SMM " : "";
    head.append(draw("text", { x: group.x, y: 16 }, space + hex(group.from)));
    if (previous)
      svg.append(
        draw("line", {
          class: "break",
          x1: group.x - 8,
          x2: group.x - 8,
          y1: HEAD,
          y2: height - 6,
        }),
      );
    previous = group;
  }
  steps.forEach((each, index) => {
    const y = HEAD + index * ROW;
    const row = draw("g", { class: "row" });
    row.append(draw("rect", { class: "hit", x: 0, y, width, height: ROW, fill: "transparent" }));
    const wrong = "differs" in each && each.differs !== null && now.difference;
    const slots = slotsAfter(index);
    for (const slot of slots) {
      const [first, last] = covered(all, slot[0], slot[2], slot[2] + slot[3]);
      if (!first) continue;
      row.append(
        draw("rect", {
          x: first.x,
          y: y + 2,
          width: last.x + last.width - first.x - 1,
          height: ROW - 4,
          rx: 3,
          fill: palette.get(numberOf(slot)),
        }),
        draw("text", { class: "id", x: first.x + 3, y: y + 10 }, String(slot[1])),
      );
    }
    for (const [as, from, pages, access, what] of each.met || []) {
      const [first, last] = covered(all, as, from, from + pages);
      for (let at = all.indexOf(first); first && at <= all.indexOf(last); at++) {
        const column = all[at];
        const on = slots.some(
          (s) => s[0] === as && s[2] <= column.from && column.from < s[2] + s[3],
        );
        const x = column.x + column.width / 2 + (access === "r" ? -4 : access === "w" ? 4 : 0);
        row.append(mark(access, what, x, y + ROW - 8, on));
      }
    }
    if (wrong) {
      const as = each.differs_in || 0;
      const at = all.find((c) => c.as === as && c.from <= each.differs && each.differs < c.to);
      row.append(
        draw("rect", {
          class: "wrong",
          rx: 4,
          y: y + 1,
          height: ROW - 2,
          x: at ? at.x - 2 : 2,
          width: at ? at.width + 3 : width - 4,
        }),
      );
    }
    const at = draw("g", { class: "at" });
    at.append(
      draw("rect", { class: "ground", x: 0, y, width: LEFT - 3, height: ROW }),
      draw(
        "text",
        { class: wrong ? "bad" : "number", x: 8, y: y + 16 },
        (wrong ? "≠" : "") + (each.origin < 0 ? "-" : isEnd(each) ? "end" : each.origin),
      ),
    );
    row.append(at);
    row.addEventListener("click", () => go(now.name, index));
    svg.append(row);
    rows.push(row);
  });
  svg.append(head);
  return { svg, rows, palette, scale };
}

function legend() {
  const one = (access, what, text) => {
    const svg = draw("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" });
    svg.append(mark(access, what, 7, 7, false));
    return make("span", {}, svg, " " + text);
  };
  return make(
    "figcaption",
    {},
    "Operations go down, guest-physical memory to the right (not to scale).",
    make(
      "span",
      {},
      make("span", { class: "swatch", style: `background:${OWN}` }),
      " slot of the test guest itself",
    ),
    one("r", "memory", "read memory"),
    one("r", "mmio", "read: MMIO exit"),
    one("w", "memory", "wrote memory"),
    one("w", "mmio", "write: MMIO exit"),
    one("x", "memory", "executed"),
    one("i", "memory", "memory of an instruction"),
    one("r", "stop", "vCPU stopped"),
  );
}
