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
    if (node !== null) reveal(node);
    showChosen();
    markSoon();
    say(node === null ? "" : `${nameOf(node)} is selected: ${countOf(node)}. Its edges are listed.`);
    if (focused && node !== null) chosen.focus();
  }
  function goTo(node) {
    if (node !== null) reveal(node);
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
  const pointed = event => nodeAt(...spot(event).map(place => place * size));
  canvas.addEventListener("pointermove", event => {
    if (pressed.has(event.pointerId)) return drag(event);
    via = null;
    look(pointed(event));
    canvas.style.cursor = hot === null ? "" : "pointer";
  });
  canvas.addEventListener("pointerleave", () => look(null));
  canvas.addEventListener("pointerdown", press);
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, release);
  canvas.addEventListener("wheel", wheel, {passive: false});
  canvas.addEventListener("click", event => {
    if (!moved) fix(pointed(event)); // else it is the end of a drag
  });
  canvas.addEventListener("keydown", event => {
    const step = event.shiftKey && PAN_KEYS[event.key], act = step ? () => pan(...step) : KEYS[event.key] ?? VIEW_KEYS[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    act();
    event.preventDefault();
  });
  for (const button of section.querySelectorAll("[data-view]")) button.addEventListener("click", VIEW[button.dataset.view]);
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
