package server_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// bitmaps is a ContextSource of fixed bitmaps, by name without qemu:dirty-bitmap:,
// that counts what is open.
type bitmaps struct {
	dirty map[string][]blockdev.Extent

	mu   sync.Mutex
	open map[string]int
	err  error // of Status
}

func newBitmaps(dirty map[string][]blockdev.Extent) *bitmaps {
	return &bitmaps{dirty: dirty, open: map[string]int{}}
}

func (b *bitmaps) Contexts(context.Context) (names []string, err error) {
	for name := range b.dirty {
		names = append(names, server.DirtyBitmapPrefix+name)
	}
	slices.Sort(names)
	return append(names, "x-test:other"), nil
}

func (b *bitmaps) OpenContext(_ context.Context, name string) (server.Context, error) {
	short, ok := strings.CutPrefix(name, server.DirtyBitmapPrefix)
	list, there := b.dirty[short]
	if !ok || !there {
		return nil, fmt.Errorf("context %q does not exist", name)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open[short]++
	return &bitmap{of: b, name: short, dirty: list}, nil
}

func (b *bitmaps) opened(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open[name]
}

func (b *bitmaps) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

type bitmap struct {
	of    *bitmaps
	name  string
	dirty []blockdev.Extent
}

// Status tells each grain by itself, so that the server has to join them.
func (m *bitmap) Status(off, n int64, yield func(blockdev.Extent, uint32) bool) error {
	m.of.mu.Lock()
	err := m.of.err
	m.of.mu.Unlock()
	if err != nil {
		return err
	}
	for at, end := off, off+n; at < end; {
		x := blockdev.Extent{Offset: at, Length: min(end, (at/blockdev.GrainSize+1)*blockdev.GrainSize) - at}
		flags := uint32(0)
		for _, d := range m.dirty {
			if x.Offset >= d.Offset && x.End() <= d.End() {
				flags = 1
			}
		}
		if !yield(x, flags) {
			return nil
		}
		at = x.End()
	}
	return nil
}

func (m *bitmap) Close() {
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	m.of.open[m.name]--
}

func contextRequest(name string, queries ...string) []byte {
	return nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: name, Queries: queries})
}

// contexts are the names and numbers in the replies to SET or LIST.
func contextReplies(t *testing.T, list []optionReply) (names []string, ids []uint32) {
	t.Helper()
	for _, r := range list {
		if r.reply == nbd.RepMetaContext {
			ids, names = append(ids, binary.BigEndian.Uint32(r.data)), append(names, string(r.data[4:]))
		}
	}
	return names, ids
}

func twoBitmaps() *bitmaps {
	return newBitmaps(map[string][]blockdev.Extent{
		"monday":  {{Offset: 8192, Length: 4096}, {Offset: 1 << 19, Length: 8192}},
		"tuesday": {{Offset: 0, Length: 1 << 20}},
	})
}

func TestContextsAreListedByQuery(t *testing.T) {
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20), Contexts: twoBitmaps()})
	w := s.connect(t)
	w.ack(nbd.OptStructuredReply, nil)
	const base, monday, tuesday, other = "base:allocation", "qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:tuesday", "x-test:other"
	for _, x := range []struct{ queries, want []string }{
		{nil, []string{base, monday, tuesday, other}},
		{[]string{"base:"}, []string{base}},
		{[]string{"qemu:"}, []string{monday, tuesday}},
		{[]string{"qemu:dirty-bitmap:"}, []string{monday, tuesday}},
		{[]string{"qemu:dirty-bitmap:tuesday", "x-test:"}, []string{tuesday, other}},
		{[]string{"qemu:dirty-bitmap:tues", "unknown:", "no colon", ""}, nil},
		{[]string{base, base, "base:"}, []string{base}},
	} {
		names, ids := contextReplies(t, w.ack(nbd.OptListMetaContext, contextRequest("disk", x.queries...)))
		if !slices.Equal(names, x.want) || slices.ContainsFunc(ids, func(id uint32) bool { return id != 0 }) {
			t.Errorf("queries %q list %q %v, want %q", x.queries, names, ids, x.want)
		}
	}
	for _, queries := range [][]string{nil, {"qemu:"}, {"qemu:dirty-bitmap:"}, {"base:"}, {"qemu:dirty-bitmap:sunday"}, {other}} {
		if names, _ := contextReplies(t, w.ack(nbd.OptSetMetaContext, contextRequest("disk", queries...))); len(names) > 0 {
			t.Errorf("queries %q select %q, want nothing", queries, names)
		}
	}
	many := make([]string, 0, 300)
	for range 300 {
		many = append(many, base)
	}
	if names, _ := contextReplies(t, w.ack(nbd.OptSetMetaContext, contextRequest("disk", many...))); len(names) != 1 {
		t.Errorf("one context asked for 300 times is selected %d times", len(names))
	}
}

func TestTooManyContextsAreRefusedAndClosed(t *testing.T) {
	dirty := map[string][]blockdev.Extent{}
	var queries []string
	for i := range 80 {
		dirty[fmt.Sprint(i)] = nil
		queries = append(queries, fmt.Sprint("qemu:dirty-bitmap:", i))
	}
	b := newBitmaps(dirty)
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20), Contexts: b})
	w := s.connect(t)
	w.ack(nbd.OptStructuredReply, nil)
	w.refused(nbd.OptSetMetaContext, contextRequest("disk", queries...), nbd.RepErrTooBig)
	for name := range dirty {
		if b.opened(name) != 0 {
			t.Fatalf("context %s is still open", name)
		}
	}
	names, _ := contextReplies(t, w.ack(nbd.OptSetMetaContext, contextRequest("disk", queries[:64]...)))
	if len(names) != 64 {
		t.Errorf("%d contexts are selected, want 64", len(names))
	}
}

// A reply has one chunk for each context that was selected, with its number.
func TestBlockStatusAnswersAllContextsAtOnce(t *testing.T) {
	b := twoBitmaps()
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: plain{newDisk(t, t.TempDir(), 1<<20)}, Contexts: b})
	w := s.connect(t)
	w.ack(nbd.OptExtendedHeaders, nil)
	w.structured, w.extended = true, true
	queries := []string{"qemu:dirty-bitmap:tuesday", "base:allocation", "qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:gone"}
	names, ids := contextReplies(t, w.ack(nbd.OptSetMetaContext, contextRequest("disk", queries...)))
	if !slices.Equal(names, queries[:3]) || len(ids) != 3 {
		t.Fatalf("selected are %q", names)
	}
	w.ack(nbd.OptGo, infoRequest("disk"))
	all := map[uint32][][2]uint64{
		ids[0]: {{1 << 20, 1}},
		ids[1]: {{1 << 20, 0}},
		ids[2]: {{8192, 0}, {4096, 1}, {1<<19 - 12288, 0}, {8192, 1}, {1<<19 - 8192, 0}},
	}
	check := func(r wide, payload []byte, want map[uint32][][2]uint64) {
		t.Helper()
		got := w.doWide(r, payload)
		seen := map[uint32][][2]uint64{}
		for _, x := range got.wide {
			seen[x.context] = x.extents
		}
		if got.errno != 0 || got.chunks != len(want) || !reflect.DeepEqual(seen, want) {
			t.Errorf("%+v: %v %s, contexts %v; want %v", r, got.errno, got.text, seen, want)
		}
	}
	check(wide{command: 7, length: 1 << 20}, nil, all)
	check(wide{command: 7, flags: 1 << 3, offset: 9000, length: 1 << 19}, nil, map[uint32][][2]uint64{ids[0]: {{1 << 19, 1}}, ids[1]: {{1 << 19, 0}}, ids[2]: {{12288 - 9000, 1}}})

	// A payload names some of them.
	payload := binary.BigEndian.AppendUint64(nil, 1<<20)
	payload = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(payload, ids[2]), ids[0])
	check(wide{command: 7, flags: payloadLength, length: 16}, payload, map[uint32][][2]uint64{ids[2]: all[ids[2]], ids[0]: all[ids[0]]})
	check(wide{command: 7, flags: payloadLength, length: 12}, payload[:12], map[uint32][][2]uint64{ids[2]: all[ids[2]]})

	// One that fails fails the reply, and the connection goes on.
	b.fail(fmt.Errorf("%w: the map is gone", blockdev.ErrCorrupt))
	if got := w.doWide(wide{command: 7, length: 1 << 20}, nil); got.errno != nbd.EIO || got.chunks != 1 {
		t.Errorf("a context that fails: %v in %d chunks", got.errno, got.chunks)
	}
	b.fail(nil)
	check(wide{command: 7, length: 1 << 20}, nil, all)
}

// A context is open from SET until the next SET, the choice of another export, or the
// end of the connection.
func TestContextsAreClosed(t *testing.T) {
	for name, end := range map[string]func(s *running, w *wire){
		"SET of nothing": func(_ *running, w *wire) { w.ack(nbd.OptSetMetaContext, contextRequest("disk")) },
		"SET that fails": func(_ *running, w *wire) { w.refused(nbd.OptSetMetaContext, contextRequest("none"), nbd.RepErrUnknown) },
		"GO of another":  func(_ *running, w *wire) { w.ack(nbd.OptGo, infoRequest("other")) },
		"ABORT":          func(_ *running, w *wire) { w.ack(nbd.OptAbort, nil) },
		"disconnect":     func(_ *running, w *wire) { w.nc.Close() },
		"DISC": func(_ *running, w *wire) {
			w.ack(nbd.OptGo, infoRequest("disk"))
			w.send(nbd.Request{Type: nbd.CmdDisc}, nil)
		},
		"end after GO": func(_ *running, w *wire) { w.ack(nbd.OptGo, infoRequest("disk")); w.nc.Close() },
		"removal of export": func(s *running, w *wire) {
			w.ack(nbd.OptGo, infoRequest("disk"))
			s.Remove(context.Background(), "disk")
		},
		"another of its name": func(s *running, w *wire) {
			if err := s.Remove(context.Background(), "disk"); err != nil {
				w.t.Error(err)
			}
			s.add(w.t, server.Export{Name: "disk", Device: plain{newDisk(w.t, w.t.TempDir(), 1<<20)}})
			w.ack(nbd.OptGo, infoRequest("disk"))
			w.structured = true
			w.fails(nbd.Request{Type: nbd.CmdBlockStatus, Length: 512}, nil, nbd.EINVAL)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := twoBitmaps()
			s := start(t, server.Options{})
			d := newDisk(t, t.TempDir(), 1<<20)
			s.add(t, server.Export{Name: "disk", Device: d, Contexts: b})
			s.add(t, server.Export{Name: "other", Device: d})
			w := s.connect(t)
			w.ack(nbd.OptStructuredReply, nil)
			w.ack(nbd.OptSetMetaContext, contextRequest("disk", "qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:monday"))
			if n := b.opened("monday"); n != 1 {
				t.Fatalf("the context is open %d times after SET", n)
			}
			end(s, w)
			eventually(t, "the context is closed", func() bool { return b.opened("monday") == 0 })
		})
	}
}

// A reply to structured replies keeps to 32 bits and to what was asked for, whatever
// a context tells.
func TestContextThatTellsTooMuchIsCut(t *testing.T) {
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20), Contexts: boundless{}})
	w := s.connect(t)
	w.ack(nbd.OptStructuredReply, nil)
	w.ack(nbd.OptSetMetaContext, contextRequest("disk", "qemu:dirty-bitmap:boundless"))
	w.ack(nbd.OptGo, infoRequest("disk"))
	w.structured = true
	got := w.works(nbd.Request{Type: nbd.CmdBlockStatus, Offset: 512, Length: 1024}, nil)
	if want := []nbd.Descriptor{{Length: 1024, Flags: 1}}; !slices.Equal(got.status, want) {
		t.Errorf("status %v, want %v", got.status, want)
	}
	w.fails(nbd.Request{Type: nbd.CmdBlockStatus, Offset: 4096, Length: 1024}, nil, nbd.EIO) // it tells nothing
	w.alive()
}

type boundless struct{}

func (boundless) Contexts(context.Context) ([]string, error) { return nil, errors.New("no list") }
func (boundless) OpenContext(context.Context, string) (server.Context, error) {
	return boundless{}, nil
}
func (boundless) Status(off, _ int64, yield func(blockdev.Extent, uint32) bool) error {
	if off < 4096 {
		yield(blockdev.Extent{Offset: off, Length: 1 << 50}, 1)
	}
	return nil
}
func (boundless) Close() {}

// One request for a whole disk does not keep a context busy for ever: the answer is
// for the beginning, and the client asks on.
func TestBlockStatusOfAHugeRangeIsBounded(t *testing.T) {
	const size = 1 << 40
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), size), Contexts: twoBitmaps()})
	w := s.connect(t)
	w.ack(nbd.OptExtendedHeaders, nil)
	w.structured, w.extended = true, true
	w.ack(nbd.OptSetMetaContext, contextRequest("disk", "qemu:dirty-bitmap:tuesday"))
	w.ack(nbd.OptGo, infoRequest("disk"))
	got := w.doWide(wide{command: 7, length: size}, nil)
	if got.errno != 0 || len(got.wide) != 1 {
		t.Fatalf("%v %s, %d contexts", got.errno, got.text, len(got.wide))
	}
	if want := [][2]uint64{{1 << 20, 1}, {4<<30 - 1<<20, 0}}; !reflect.DeepEqual(got.wide[0].extents, want) {
		t.Errorf("extents %v, want the first 1048576 grains: %v", got.wide[0].extents, want)
	}
}

// The tools with which people read increments.
func TestInteropDirtyBitmap(t *testing.T) {
	d := newDisk(t, t.TempDir(), 1<<20)
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: d, ReadOnly: true, Contexts: twoBitmaps()})
	type extent struct {
		Offset, Length int64
		Type           int
	}
	want := []extent{{0, 8192, 0}, {8192, 4096, 1}, {12288, 1<<19 - 12288, 0}, {1 << 19, 8192, 1}, {1<<19 + 8192, 1<<19 - 8192, 0}}
	var got []extent
	out := tool(t, "nbdinfo", "--map=qemu:dirty-bitmap:monday", "--json", s.uri("disk"))
	if err := json.Unmarshal([]byte(out), &got); err != nil || !slices.Equal(got, want) {
		t.Errorf("nbdinfo --map prints %s (%v)", out, err)
	}
	if out := tool(t, "nbdinfo", "--json", s.uri("disk")); !strings.Contains(out, `"qemu:dirty-bitmap:monday"`) || !strings.Contains(out, `"qemu:dirty-bitmap:tuesday"`) {
		t.Errorf("nbdinfo does not list the bitmaps: %s", out)
	}
	out = tool(t, "qemu-img", "map", "--output=json", "--image-opts",
		"driver=nbd,server.type=unix,server.path="+s.socket+",export=disk,x-dirty-bitmap=qemu:dirty-bitmap:monday")
	var runs []struct {
		Start, Length int64
		Data          bool
	}
	if err := json.Unmarshal([]byte(out), &runs); err != nil {
		t.Fatalf("qemu-img map prints %s (%v)", out, err)
	}
	got = nil
	for _, r := range runs {
		dirty := 0
		if !r.Data { // qemu-img shows what is dirty as what is no data
			dirty = 1
		}
		got = append(got, extent{r.Start, r.Length, dirty})
	}
	if !slices.Equal(got, want) {
		t.Errorf("qemu-img map prints %s", out)
	}
	script := `
import nbd
h = nbd.NBD()
h.add_meta_context("qemu:dirty-bitmap:monday")
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:dirty-bitmap:tuesday")
h.connect_uri("` + s.uri("disk") + `")
seen = {}
def f(name, off, entries, err):
    seen[name] = entries
h.block_status(1 << 20, 0, f)
assert seen["qemu:dirty-bitmap:tuesday"] == [1 << 20, 1], seen
assert seen["qemu:dirty-bitmap:monday"][:4] == [8192, 0, 4096, 1], seen
assert "base:allocation" in seen, seen
`
	tool(t, "nbdsh", "-c", script)
}
