package fstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Content says how much Populate makes. The zero value is small enough for a short
// test run.
type Content struct {
	Entries      int   // of the large directory; 3 000
	HalfEntries  int   // of the directory of which half is deleted; 1 000
	SparseBytes  int64 // size of the sparse file; 1 GiB
	BigBytes     int64 // a file of random bytes; 8 MiB
	GrowSteps    int   // fsyncs of the two files that grow in turn; 4
	StripedParts int   // blocks written in a file with holes between; 1 600
}

func (c Content) withDefaults() Content {
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&c.Entries, 3000)
	set(&c.HalfEntries, 1000)
	set(&c.GrowSteps, 4)
	set(&c.StripedParts, 1600)
	if c.SparseBytes == 0 {
		c.SparseBytes = 1 << 30
	}
	if c.BigBytes == 0 {
		c.BigBytes = 8 << 20
	}
	return c
}

// populator makes contents below dir; the first failure ends the test.
type populator struct {
	t   testing.TB
	dir string
	rnd *rand.ChaCha8
}

// Populate fills the mounted file system at dir with everything that a reader may
// get wrong: large, deep and half-emptied directories; names of all kinds; sparse,
// punched, preallocated and fragmented files; links; device nodes; owners, modes,
// attributes, ACLs and times at their limits. What a file system refuses (large
// attributes, preallocation) is left out and logged. The contents are the same in
// each run.
func Populate(t testing.TB, dir string, c Content) {
	t.Helper()
	c = c.withDefaults()
	p := &populator{t: t, dir: dir, rnd: rand.NewChaCha8([32]byte{1})}
	old := unix.Umask(0)
	defer unix.Umask(old)
	p.many(c.Entries)
	p.half(c.HalfEntries)
	p.directories()
	p.names()
	p.files(c)
	p.links()
	p.nodes()
	p.owners()
	p.xattrs()
	p.times()
}

func (p *populator) path(parts ...string) string {
	return p.dir + "/" + strings.Join(parts, "/")
}

func (p *populator) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("populate: %v", err)
	}
}

// may is must, except for what a file system cannot do.
func (p *populator) may(what string, err error) bool {
	p.t.Helper()
	for _, refused := range []error{unix.EOPNOTSUPP, unix.ENOSPC, unix.ERANGE, unix.E2BIG, unix.EFBIG} {
		if errors.Is(err, refused) {
			p.t.Logf("left out: %s: %v", what, err)
			return false
		}
	}
	p.must(err)
	return true
}

func (p *populator) mkdir(parts ...string) string {
	p.t.Helper()
	path := p.path(parts...)
	p.must(os.MkdirAll(path, 0o755))
	return path
}

func (p *populator) write(path string, size int) {
	p.t.Helper()
	b := make([]byte, size)
	p.rnd.Read(b)
	p.must(os.WriteFile(path, b, 0o644))
}

func (p *populator) many(entries int) {
	p.mkdir("many")
	for i := range entries {
		f, err := os.Create(p.path("many", fmt.Sprintf("entry with a number %08d", i)))
		p.must(err)
		p.must(f.Close())
	}
}

// half makes a directory of symbolic links and deletes every second one.
func (p *populator) half(entries int) {
	p.mkdir("half")
	for i := range entries {
		p.must(os.Symlink("x", p.path("half", fmt.Sprintf("entry-%d", i))))
	}
	for i := 0; i < entries; i += 2 {
		p.must(os.Remove(p.path("half", fmt.Sprintf("entry-%d", i))))
	}
}

func (p *populator) directories() {
	p.mkdir("empty")
	for i := range 30 { // inline directories: none, some and too many entries for the inode
		small := p.mkdir("small", fmt.Sprint(i))
		for j := range i {
			p.write(filepath.Join(small, fmt.Sprint("f", j)), j*7)
		}
	}
	deep := []string{"deep"}
	for i := range 60 {
		deep = append(deep, fmt.Sprintf("d%d", i))
	}
	p.write(p.mkdir(deep...)+"/bottom", 100)
	for i := range 100 { // so that the link count of the directory grows
		p.mkdir("subdirs", fmt.Sprint(i))
	}
}

func (p *populator) names() {
	p.mkdir("names")
	for _, name := range []string{
		"Grüße", "файл", "文件", "ファイル", "ملف", "😀", "cafe\u0301", "caf\u00e9",
		strings.Repeat("n", 255), strings.Repeat("ü", 127), "\xff\xfe\x80", "latin1-\xe4\xf6\xfc",
		"new\nline", "tab\t", "\x01\x02\x7f", " ", "  leading", "trailing ", "-rf", "*", "\\", "a\\b",
		"...", ".hidden", "..x", "\"quoted\"", "$(x)", "CON", "con", "a:b", "~",
	} {
		p.write(p.path("names", name), 10)
	}
	for i := 1; i < 256; i++ {
		if i == '/' {
			continue
		}
		p.write(p.path("names", "byte "+string([]byte{byte(i)})), 0)
	}
	for n := 1; n <= 255; n += 3 {
		p.write(p.path("names", strings.Repeat("\xf0", n)), 0)
	}
}

func (p *populator) files(c Content) {
	p.mkdir("files")
	for _, size := range []int{0, 1, 59, 60, 61, 100, 150, 160, 300, 511, 512, 1023, 1024, 1025, 4095, 4096, 4097, 65536, 100000} {
		p.write(p.path("files", fmt.Sprint("size-", size)), size)
	}
	p.big("big", c.BigBytes)
	p.sparse("sparse", c.SparseBytes)
	p.punched("punched")
	p.grown("grown", c.GrowSteps)
	p.striped("striped", c.StripedParts)
	p.preallocated("preallocated")
	for i, sizes := range [][2]int64{{0, 3 << 20}, {50, 1000}, {200000, 5000}, {30, 10}} { // truncated up and down
		path := p.path("files", fmt.Sprint("truncated-", i))
		p.write(path, int(sizes[0]))
		p.must(os.Truncate(path, sizes[1]))
	}
}

func (p *populator) create(name string) *os.File {
	p.t.Helper()
	f, err := os.Create(p.path("files", name))
	p.must(err)
	return f
}

func (p *populator) writeAt(f *os.File, size int, off int64) {
	p.t.Helper()
	b := make([]byte, size)
	p.rnd.Read(b)
	_, err := f.WriteAt(b, off)
	p.must(err)
}

func (p *populator) big(name string, size int64) {
	f := p.create(name)
	for off := int64(0); off < size; off += 1 << 20 {
		p.writeAt(f, int(min(1<<20, size-off)), off)
	}
	p.must(f.Close())
}

func (p *populator) sparse(name string, size int64) {
	f := p.create(name)
	for _, off := range []int64{0, 5000, 1 << 20, 12 * 1024, 12 * 4096, size / 2, size/2 + 70000, size - 4097} {
		p.writeAt(f, 4097, off)
	}
	p.must(f.Close())
	f = p.create(name + "-empty")
	p.must(f.Truncate(size))
	p.must(f.Close())
}

func (p *populator) punched(name string) {
	f := p.create(name)
	p.writeAt(f, 4<<20, 0)
	p.must(f.Sync())
	for off := int64(0); off < 4<<20; off += 32 << 10 {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 16<<10)
		if !p.may("punched holes", err) {
			break
		}
	}
	p.must(f.Close())
}

// grown makes two files that grow in turn, each step synced, so that they have many
// extents.
func (p *populator) grown(name string, steps int) {
	a, b := p.create(name+"-a"), p.create(name+"-b")
	for i := range steps {
		for _, f := range []*os.File{a, b} {
			p.writeAt(f, 5000, int64(i)*5000)
			p.must(f.Sync())
		}
	}
	p.must(a.Close())
	p.must(b.Close())
}

// striped makes a file whose every second block is a hole: one extent for each.
func (p *populator) striped(name string, parts int) {
	f := p.create(name)
	for i := range parts {
		p.writeAt(f, 4096, int64(i)*8192)
	}
	p.must(f.Close())
}

func (p *populator) preallocated(name string) {
	f := p.create(name)
	if p.may("preallocation", unix.Fallocate(int(f.Fd()), 0, 0, 2<<20)) {
		p.writeAt(f, 10000, 100000)
		p.writeAt(f, 4096, 1<<20)
	}
	p.must(f.Close())
	f = p.create(name + "-behind-the-end")
	if p.may("preallocation", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 2<<20)) {
		p.writeAt(f, 5000, 0)
	}
	p.must(f.Close())
	f = p.create(name + "-zeroed")
	p.writeAt(f, 200000, 0)
	p.may("zeroed range", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, 20000, 100000))
	p.must(f.Close())
}

func (p *populator) links() {
	p.mkdir("links")
	p.write(p.path("links", "one"), 3000)
	for i := range 20 {
		p.must(os.Link(p.path("links", "one"), p.path("links", fmt.Sprint("hard", i))))
	}
	for _, n := range []int{1, 58, 59, 60, 61, 150, 300, 1000} {
		p.must(os.Symlink(strings.Repeat("t", n), p.path("links", fmt.Sprint("symlink-", n))))
	}
	for name, target := range map[string]string{
		"loop": "loop", "absolute": "/etc/hostname", "dangling": "none", "up": "../../../../etc/passwd", "bytes": "\xff\n\x01",
	} {
		p.must(os.Symlink(target, p.path("links", name)))
	}
}

func (p *populator) nodes() {
	p.mkdir("nodes")
	for i, d := range [][2]uint32{{1, 3}, {8, 0}, {255, 255}, {256, 3}, {8, 256}, {4095, 1048575}, {0, 0}} {
		dev := int(unix.Mkdev(d[0], d[1]))
		err := unix.Mknod(p.path("nodes", fmt.Sprint("char", i)), unix.S_IFCHR|0o600, dev)
		if errors.Is(err, unix.EINVAL) && d[1] >= 1<<18 {
			p.t.Logf("left out: device with minor number %d: %v", d[1], err) // xfs
			continue
		}
		p.must(err)
		p.must(unix.Mknod(p.path("nodes", fmt.Sprint("block", i)), unix.S_IFBLK|0o640, dev))
	}
	p.must(unix.Mknod(p.path("nodes", "fifo"), unix.S_IFIFO|0o644, 0))
	p.must(unix.Mknod(p.path("nodes", "socket"), unix.S_IFSOCK|0o755, 0))
}

func (p *populator) owners() {
	p.mkdir("owners")
	for i, id := range []int{0, 1, 1000, 65534, 65535, 65536, 70000, 4000000000} {
		path := p.path("owners", fmt.Sprint("owner", i))
		p.write(path, 1)
		p.must(os.Lchown(path, id, id-i))
	}
	for _, mode := range []uint32{0, 0o777, 0o4755, 0o2755, 0o1777, 0o7777, 0o400} {
		path := p.path("owners", fmt.Sprintf("mode%o", mode))
		p.write(path, 1)
		p.must(unix.Chmod(path, mode))
	}
	p.mkdir("owners", "sticky")
	p.must(unix.Chmod(p.path("owners", "sticky"), 0o1777))
}

func (p *populator) xattrs() {
	p.mkdir("xattrs")
	set := func(path, name string, value []byte) {
		p.may(fmt.Sprintf("attribute of %d bytes", len(value)), unix.Lsetxattr(path, name, value, 0))
	}
	file := func(name string) string {
		path := p.path("xattrs", name)
		p.write(path, 10)
		return path
	}
	random := func(n int) []byte {
		b := make([]byte, n)
		p.rnd.Read(b)
		return b
	}
	small := file("small")
	set(small, "user.text", []byte("a value"))
	set(small, "user.empty", nil)
	set(small, "user."+strings.Repeat("n", 200), []byte("long name"))
	set(small, "trusted.overlay", []byte("t\x00t"))
	set(small, "security.other", []byte("s"))
	set(file("large-3000"), "user.large", random(3000))
	set(file("large-900"), "user.large", random(900))
	set(file("large-20000"), "user.large", random(20000))
	set(file("large-60000"), "user.large", random(60000))
	shared := random(10000)
	for i := range 3 { // one attribute inode for all of them
		set(file(fmt.Sprint("shared", i)), "user.shared", shared)
	}
	forty := file("forty")
	for i := range 40 {
		set(forty, fmt.Sprintf("user.number%02d", i), random(i))
	}
	set(p.mkdir("xattrs", "dir"), "user.on a directory", []byte("d"))
	p.must(os.Symlink("small", p.path("xattrs", "symlink")))
	set(p.path("xattrs", "symlink"), "trusted.on a link", []byte("l"))
	capability := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // cap_net_raw=ep
	set(file("capability"), "security.capability", capability)

	acl := file("acl")
	const none = 0xFFFFFFFF
	entries := [][3]uint32{{1, 6, none}, {2, 7, 1000}, {2, 4, 70000}, {2, 0, 4000000000}, {4, 4, none}, {8, 5, 100}, {0x10, 7, none}, {0x20, 0, none}}
	set(acl, "system.posix_acl_access", aclValue(entries...))
	dir := p.mkdir("xattrs", "acl-dir")
	set(dir, "system.posix_acl_default", aclValue(entries...))
	p.write(filepath.Join(dir, "inherits"), 1)
	p.mkdir("xattrs", "acl-dir", "inherits too")
}

// aclValue is an ACL as setxattr(2) takes it: entries of tag, permissions, id.
func aclValue(entries ...[3]uint32) []byte {
	le := binary.LittleEndian
	out := le.AppendUint32(nil, 2)
	for _, e := range entries {
		out = le.AppendUint16(out, uint16(e[0]))
		out = le.AppendUint16(out, uint16(e[1]))
		out = le.AppendUint32(out, e[2])
	}
	return out
}

func (p *populator) times() {
	p.mkdir("times")
	for _, s := range []string{
		"1901-12-13T20:45:52Z", "1901-12-31T00:00:00.000000001Z", "1969-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00Z",
		"2038-01-19T03:14:07Z", "2038-01-19T03:14:08.5Z", "2040-02-29T12:00:00.123456789Z", "2100-01-01T00:00:00.999999999Z",
		"2106-02-07T06:28:16Z", "2242-03-16T12:56:32Z", "2446-05-10T22:38:55Z",
	} {
		at, err := time.Parse(time.RFC3339Nano, s)
		p.must(err)
		path := p.path("times", s)
		p.write(path, 1)
		spec := func(at time.Time) unix.Timespec {
			return unix.Timespec{Sec: at.Unix(), Nsec: int64(at.Nanosecond())}
		}
		p.must(unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{spec(at.Add(-time.Hour)), spec(at)}, unix.AT_SYMLINK_NOFOLLOW))
	}
}
