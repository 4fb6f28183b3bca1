{
  const section = document.querySelector(".graph"), board = section.querySelector(".board");
  const tip = section.querySelector(".tip"), chosen = section.querySelector(".chosen"), status = section.querySelector(".status");
  const data = JSON.parse(document.querySelector(".graph-data").textContent);
  const unpack = (text, kind) => new kind(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer);
  const places = unpack(data.places, Int16Array), influences = unpack(data.influences, Float32Array);
  const strengths = unpack(data.strengths, Uint8Array), slices = unpack(data.querySlices, Uint32Array);
  const subsets = unpack(data.trainSubsets, Uint32Array);
  const numQueries = data.queries.length, numNodes = numQueries + data.trains.length, numEdges = influences.length;
  const edgeQueries = unpack(data.edgeQueries, Uint32Array); // edges are ordered by strength, the strongest first
  const edgeTrains = unpack(data.edgeTrains, Uint32Array).map(train => train + numQueries);
  const edgesOf = Array.from({length: numNodes}, () => []);
  for (let edge = 0; edge < numEdges; edge++) {
    edgesOf[edgeQueries[edge]].push(edge);
    edgesOf[edgeTrains[edge]].push(edge);
  }

  // Which signs and slices are on, and the nodes in focus: `hot` by pointer or keyboard, `fixed` by click or Enter.
  const signOn = [true, true], sliceOn = data.slices.map(() => true);
  let hot = null, fixed = null, via = null;
  const signOf = edge => (influences[edge] > 0 ? 1 : 0);
  const edgeOn = edge => signOn[signOf(edge)] && sliceOn[slices[edgeQueries[edge]]];
  const isQuery = node => node < numQueries;
  const nodeOn = node => (isQuery(node) ? sliceOn[slices[node]] : edgesOf[node].some(edgeOn));
  const visibleEdges = node => edgesOf[node].filter(edgeOn);
  const otherEnd = (edge, node) => (edgeQueries[edge] === node ? edgeTrains[edge] : edgeQueries[edge]);
  const recordOf = node => (isQuery(node) ? data.queries[node] : data.trains[node - numQueries]);
  const nameOf = node => `${isQuery(node) ? "query " : "training example #"}${recordOf(node).index}`;
  const scoreOf = edge => {
    const score = data.factor * influences[edge], size = Math.abs(score), digits = Number(size.toPrecision(3));
    return `${score > 0 ? "+" : "−"}${size < 1e-4 ? size.toExponential(1) : size >= 1e6 ? size.toExponential(2) : digits}`;
  };

  // Drawing: edges and nodes only after a switch, a resize or a move, marks whenever a node gets the focus.
  const layers = Object.fromEntries(["edges", "nodes", "marks"].map(name => {
    const canvas = board.querySelector(`canvas.${name}`);
    return [name, {canvas, pen: canvas.getContext("2d")}];
  }));
  const {canvas} = layers.marks;
  let size = 0, zoom = 1, centre = [0.5, 0.5], radius = 0, ink = {}, job = 0;
  const x = node => size * centre[0] + (radius * places[2 * node]) / 32000;
  const y = node => size * centre[1] - (radius * places[2 * node + 1]) / 32000;
  const at = (angle, far) => [size * centre[0] + radius * far * Math.sin(angle), size * centre[1] - radius * far * Math.cos(angle)];
  const dot = () => Math.max(1.5, Math.min(4, (radius / 330) * Math.min(4, 110 / Math.sqrt(data.trains.length))));

  function wipe({canvas, pen}) {
    pen.globalCompositeOperation = "source-over";
    pen.globalAlpha = 1;
    pen.clearRect(0, 0, size, size);
    return pen;
  }
  function strokeEdge(pen, edge) {
    pen.beginPath();
    pen.moveTo(x(edgeTrains[edge]), y(edgeTrains[edge]));
    pen.lineTo(x(edgeQueries[edge]), y(edgeQueries[edge]));
    pen.stroke();
  }
  function drawEdges() { // in parts, one per frame, so that the page stays responsive; weaker edges go beneath
    const pen = wipe(layers.edges), mine = ++job, shown = [];
    for (let edge = 0; edge < numEdges; edge++) if (edgeOn(edge)) shown.push(edge);
    section.querySelector(".shown").value = `${shown.length.toLocaleString("en")} of ${numEdges.toLocaleString("en")} edges`;
    section.dataset.drawn = 0;
    pen.globalCompositeOperation = "destination-over";
    const thin = Math.min(1, Math.sqrt(4000 / Math.max(shown.length, 1)));
    let next = 0, part = 500, last = performance.now();
    function step(now) {
      if (mine !== job) return;
      part = Math.max(100, Math.min(5000, now - last > 25 ? part / 2 : part * 1.3));
      last = now;
      for (const end = Math.min(shown.length, next + part); next < end; next++) {
        const edge = shown[next], strength = Math.round(strengths[edge] / 16) / 16;
        pen.globalAlpha = Math.max(0.03, 0.05 * thin) + 0.75 * Math.sqrt(thin) * strength ** 1.5; // less would be rounded away
        pen.lineWidth = 0.4 + 1.2 * strength;
        pen.strokeStyle = ink.signs[signOf(edge)];
        strokeEdge(pen, edge);
      }
      section.dataset.drawn = next;
      if (next < shown.length) requestAnimationFrame(step);
    }
    requestAnimationFrame(step);
  }
  function drawNodes() {
    const pen = wipe(layers.nodes), width = dot();
    for (let node = numQueries; node < numNodes; node++) {
      if (!nodeOn(node)) continue;
      pen.fillStyle = ink.subsets[subsets[node - numQueries]];
      pen.fillRect(x(node) - width / 2, y(node) - width / 2, width, width);
    }
    pen.strokeStyle = pen.fillStyle = ink.text;
    pen.lineWidth = 1.5;
    const big = Math.max(1.5, Math.min(5, (2.2 * radius) / numQueries));
    for (let node = 0; node < numQueries; node++) {
      pen.globalAlpha = nodeOn(node) ? 1 : 0.2;
      pen.beginPath();
      pen.arc(x(node), y(node), big, 0, 7);
      pen.fill();
    }
    drawNames(pen);
  }
  function drawNames(pen) {
    pen.font = `${Math.max(11, Math.min(15, size / 45))}px system-ui, sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    data.slices.forEach(({name, begin, end}, slice) => {
      pen.globalAlpha = sliceOn[slice] ? 1 : 0.35;
      pen.beginPath();
      pen.arc(...at(0, 0), radius * 1.035, begin - Math.PI / 2, end - Math.PI / 2);
      pen.stroke();
      const middle = (begin + end) / 2, upsideDown = middle > Math.PI / 2 && middle < 1.5 * Math.PI;
      pen.save();
      pen.translate(...at(middle, 1.09));
      pen.rotate(upsideDown ? middle + Math.PI : middle);
      pen.fillText(name, 0, 0, radius * Math.min(2, end - begin));
      pen.restore();
    });
  }
  function drawMarks() {
    if (!size) return; // hidden until its tab is opened
    const pen = wipe(layers.marks), looked = [fixed, hot].filter(node => node !== null && nodeOn(node));
    section.classList.toggle("dim", looked.length > 0);
    const shown = fixed === null ? looked.flatMap(visibleEdges) : visibleEdges(fixed);
    for (const edge of shown.toReversed()) {
      const strength = strengths[edge] / 255, both = [edgeQueries[edge], edgeTrains[edge]].every(end => looked.includes(end));
      pen.globalAlpha = both ? 1 : 0.25 + 0.6 * strength;
      pen.lineWidth = both ? 3 : 0.6 + 1.4 * strength;
      pen.strokeStyle = ink.signs[signOf(edge)];
      strokeEdge(pen, edge);
    }
    pen.globalAlpha = 1;
    const width = Math.max(3, dot());
    for (const edge of shown) {
      const end = fixed === edgeQueries[edge] || hot === edgeQueries[edge] ? edgeTrains[edge] : edgeQueries[edge];
      pen.fillStyle = isQuery(end) ? ink.text : ink.subsets[subsets[end - numQueries]];
      pen.fillRect(x(end) - width / 2, y(end) - width / 2, width, width);
    }
    for (const node of looked) {
      pen.beginPath();
      pen.arc(x(node), y(node), node === fixed ? 8 : 6, 0, 7);
      pen.lineWidth = 4.5;
      pen.strokeStyle = ink.sheet;
      pen.stroke();
      pen.lineWidth = 2;
      pen.strokeStyle = ink.text;
      pen.stroke();
    }
  }
  let marksDue = false;
  function markSoon() { // at most once a frame, however often the pointer moves
    if (!marksDue) requestAnimationFrame(() => { marksDue = false; drawMarks(); });
    marksDue = true;
  }
  function draw() {
    if (!size) return;
    const style = getComputedStyle(section), color = name => style.getPropertyValue(name).trim();
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    ink = {
      text: color("--ink"), sheet: color("--sheet"), signs: [color("--helpful"), color("--harmful")],
      subsets: data.subsets.map(subset => (dark ? `color-mix(in srgb, ${subset.color} 45%, white)` : subset.color)),
    };
    redraw();
  }
  function redraw() {
    cells = null;
    drawNodes();
    drawMarks();
    drawEdges();
  }
  let drawDue = false;
  function drawSoon() { // at most once a frame; while the view moves, the strongest edges alone are drawn
    if (!drawDue && size) requestAnimationFrame(() => { drawDue = false; redraw(); });
    drawDue = size > 0;
  }
  function resize() {
    const wide = board.clientWidth, sharp = Math.min(2, devicePixelRatio || 1);
    if (!wide || wide === size) return;
    size = wide;
    radius = size * 0.44 * zoom;
    for (const {canvas, pen} of Object.values(layers)) {
      canvas.width = canvas.height = Math.round(size * sharp);
      pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    }
    draw();
  }

  // The node under the pointer: nodes by cell, computed when the pointer first moves after a change.
  const CELL = 12;
  let cells = null;
  const cellAt = (left, top) => Math.floor(left / CELL) + 4096 * Math.floor(top / CELL);
  function fillCells() {
    cells = new Map();
    for (let node = 0; node < numNodes; node++) {
      if (!nodeOn(node)) continue;
      const cell = cellAt(x(node), y(node));
      if (cells.has(cell)) cells.get(cell).push(node);
      else cells.set(cell, [node]);
    }
  }
  function nodeAt(left, top) {
    if (!cells) fillCells();
    let best = null, least = CELL ** 2;
    for (const right of [-CELL, 0, CELL]) for (const down of [-CELL, 0, CELL]) {
      for (const node of cells.get(cellAt(left + right, top + down)) ?? []) {
        const far = (x(node) - left) ** 2 + (y(node) - top) ** 2;
        if (far < least) [best, least] = [node, far];
      }
    }
    return best;
  }

{% include "graph_words.js" %}
{% include "graph_view.js" %}
{% include "graph_events.js" %}

  section.hidden = false;
  new ResizeObserver(resize).observe(board);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
