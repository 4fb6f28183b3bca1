  // The visible part of the graph: enlarged `zoom` times, with its centre at `centre`, in widths of the board.
  const MOST = 24;
  const within = (value, least, most) => Math.max(least, Math.min(most, value));
  function setView(wanted, left, top) {
    zoom = within(wanted, 1, MOST);
    centre = [left, top].map(value => within(value, 1 - zoom / 2, zoom / 2)); // the board stays covered
    radius = size * 0.44 * zoom;
    cells = null;
    section.dataset.zoom = zoom.toFixed(2);
    canvas.style.touchAction = zoom > 1 ? "none" : ""; // while all of the graph is visible, a finger scrolls the page
    look(null);
    drawSoon();
  }
  function zoomAt(factor, [left, top] = [0.5, 0.5]) { // that spot stays where it is
    const grown = within(zoom * factor, 1, MOST) / zoom;
    setView(zoom * grown, left + (centre[0] - left) * grown, top + (centre[1] - top) * grown);
  }
  const pan = (right, down) => setView(zoom, centre[0] + right, centre[1] + down);
  function reveal(node) {
    const [right, down] = [x(node), y(node)].map(place => (place < 0 || place > size ? 0.5 - place / size : 0));
    if (right || down) pan(right, down);
  }
  const told = act => () => {
    act();
    say(zoom > 1 ? `The graph is magnified ${Number(zoom.toFixed(1))} times.` : "The whole graph is visible.");
  };
  const VIEW = {
    in: told(() => zoomAt(1.5)),
    out: told(() => zoomAt(1 / 1.5)),
    all: told(() => setView(1, 0.5, 0.5)),
  };
  const VIEW_KEYS = {"+": VIEW.in, "=": VIEW.in, "-": VIEW.out, 0: VIEW.all};
  const PAN_KEYS = {ArrowRight: [-0.1, 0], ArrowLeft: [0.1, 0], ArrowDown: [0, -0.1], ArrowUp: [0, 0.1]}; // with Shift

  // Drag and pinch: the position of each pressed pointer, in widths of the board.
  const pressed = new Map();
  let moved = false;
  function spot(event) {
    const box = board.getBoundingClientRect();
    return [(event.clientX - box.left - board.clientLeft) / size, (event.clientY - box.top - board.clientTop) / size];
  }
  function press(event) {
    if (event.button !== 0) return;
    if (!pressed.size) moved = false;
    pressed.set(event.pointerId, spot(event));
    canvas.setPointerCapture(event.pointerId);
  }
  const release = event => pressed.delete(event.pointerId);
  function drag(event) {
    const from = pressed.get(event.pointerId), to = spot(event), step = [to[0] - from[0], to[1] - from[1]];
    if (!moved && Math.hypot(...step) * size < 5) return; // a click by an unsteady hand
    moved = true;
    pressed.set(event.pointerId, to);
    if (pressed.size === 1) return pan(...step);
    const [other] = [...pressed].find(([pointer]) => pointer !== event.pointerId).slice(1);
    const far = place => Math.max(0.01, Math.hypot(place[0] - other[0], place[1] - other[1]));
    zoomAt(far(to) / far(from), other); // each finger in turn, about the other
  }
  function wheel(event) {
    const before = zoom, lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    zoomAt(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)), spot(event)); // with Ctrl: a pinched touchpad
    if (zoom !== before || event.ctrlKey) event.preventDefault(); // else the page scrolls on
  }
