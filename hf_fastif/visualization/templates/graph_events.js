  // Pointer and keyboard.
  function look(node, tipped = true) {
    if (node === hot) return;
    hot = node;
    section.dataset.hot = node === null ? "" : nameOf(node);
    if (tipped || node === null) showTip();
    markSoon();
  }
  function say(text) {
    status.textContent = text;
  }
  function fix(node, focused = false) {
    fixed = node;
    section.dataset.fixed = node === null ? "" : nameOf(node);
    look(null);
    showChosen();
    markSoon();
    say(node === null ? "" : `${nameOf(node)} is fixed: ${countOf(node)}. Its edges are listed.`);
    if (focused && node !== null) chosen.focus();
  }
  function goTo(node) {
    look(node);
    if (node !== null) say(describe(node).map(line => line.textContent).join(". "));
  }
  function besideQuery(node, step) {
    for (let i = 1; i <= numQueries; i++) {
      const next = (node + i * step + i * numQueries) % numQueries;
      if (nodeOn(next)) return next;
    }
    return null;
  }
  function sideways(step) {
    if (hot === null) return fixed ?? besideQuery(numQueries - 1, 1);
    if (isQuery(hot) && (via === null || isQuery(via))) return besideQuery(hot, step);
    const along = visibleEdges(via ?? hot), ends = along.map(edge => otherEnd(edge, via ?? hot));
    return ends[(ends.indexOf(hot) + step + ends.length) % ends.length] ?? null;
  }
  function across() { // from a query to its strongest training example, from a training example back
    const here = hot ?? fixed;
    if (here === null) return besideQuery(numQueries - 1, 1);
    const [edge] = visibleEdges(here);
    if (edge === undefined) return here;
    const back = !isQuery(here) && via !== null && isQuery(via) ? via : otherEnd(edge, here);
    via = isQuery(here) ? here : null;
    return back;
  }
  const KEYS = {
    ArrowRight: () => goTo(sideways(1)),
    ArrowLeft: () => goTo(sideways(-1)),
    ArrowDown: () => (hot !== null && !isQuery(hot) ? undefined : goTo(across())),
    ArrowUp: () => (hot !== null && isQuery(hot) ? undefined : goTo(across())),
    Enter: () => hot !== null && fix(hot, true),
    " ": () => hot !== null && fix(hot, true),
    Escape: () => (hot === null ? fix(null) : look(null)),
  };
  const pointed = event => {
    const box = board.getBoundingClientRect();
    return nodeAt(event.clientX - box.left, event.clientY - box.top);
  };
  const {canvas} = layers.marks;
  canvas.addEventListener("pointermove", event => {
    via = null;
    look(pointed(event));
    canvas.style.cursor = hot === null ? "" : "pointer";
  });
  canvas.addEventListener("pointerleave", () => look(null));
  canvas.addEventListener("click", event => fix(pointed(event)));
  canvas.addEventListener("keydown", event => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    KEYS[event.key]();
    event.preventDefault();
  });
  canvas.addEventListener("blur", () => look(null));
  chosen.addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    fix(null);
    canvas.focus();
  });
  section.querySelector(".switches").addEventListener("change", ({target}) => {
    const {sign, slice} = target.dataset;
    if (sign !== undefined) signOn[sign] = target.checked;
    else sliceOn[slice] = target.checked;
    if (fixed !== null && !nodeOn(fixed)) fix(null);
    showChosen();
    draw();
  });
  for (const heading of document.querySelectorAll(".card h2[id]")) {
    const query = Number(heading.id.replace("query-", ""));
    const node = data.queries.findIndex(({index}) => index === query);
    const open = makeButton("in the graph", () => {
      openTab("graph");
      fix(node, true);
    });
    open.setAttribute("aria-label", `Query ${query} in the graph`);
    heading.parentElement.append(open);
  }
