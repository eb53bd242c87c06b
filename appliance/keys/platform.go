package keys

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/dedupe"
)

const (
	platformMagic   = "keelblock-platform-key"
	platformVersion = "1"
	// maxPlatformFile bounds the file: a key takes 102 bytes.
	maxPlatformFile = 1 << 20
)

// platformFile is the file of the appliance's own keys. The first is the newest and wraps;
// the others stay until nothing is wrapped by them any more.
type platformFile struct {
	path string
	hook func(step string) error
}

type platformKey struct {
	kek
	made time.Time
}

// load reads the file. A missing file is fs.ErrNotExist.
func (p platformFile) load() ([]platformKey, error) {
	op := "read the platform key"
	f, err := os.Open(p.path)
	if err != nil {
		return nil, &appliance.Error{Op: op, Err: err}
	}
	defer f.Close() // only read
	st, err := f.Stat()
	if err != nil {
		return nil, &appliance.Error{Op: op, Err: err}
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable,
			Text: fmt.Sprintf("%s has mode %#o: others can read or change it", p.path, mode), Hint: "chmod 600 " + p.path}
	}
	if st.Size() > maxPlatformFile {
		return nil, p.damaged("it is too large")
	}
	data := make([]byte, st.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return nil, &appliance.Error{Op: op, Err: err}
	}
	defer clear(data)
	return p.parse(data)
}

func (p platformFile) damaged(why string) error {
	return &appliance.Error{Op: "read the platform key", Kind: appliance.ErrUnavailable, Err: dedupe.ErrCorrupt,
		Text: fmt.Sprintf("%s: %s", p.path, why), Hint: "put a good copy of it back, or run keelblock key restore FILE"}
}

func (p platformFile) parse(data []byte) ([]platformKey, error) {
	head, rest, _ := bytes.Cut(data, []byte("\n"))
	h := strings.Fields(string(head))
	if len(h) != 3 || h[0] != platformMagic {
		return nil, p.damaged("it does not begin as a platform key")
	}
	if h[1] != platformVersion {
		return nil, fmt.Errorf("%w: %w", p.damaged("version "+h[1]), dedupe.ErrUnknownFormat)
	}
	if sum := sha256.Sum256(rest); hex.EncodeToString(sum[:]) != h[2] {
		return nil, p.damaged("its checksum does not match")
	}
	var out []platformKey
	for line := range strings.Lines(string(rest)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, p.damaged("a line of it has not three words")
		}
		secret, err := hex.DecodeString(f[1])
		made, err2 := time.Parse(time.RFC3339, f[2])
		if err != nil || err2 != nil || len(secret) != kekSize || newKEK(secret).id != f[0] {
			return nil, p.damaged("a key in it is not what its id says")
		}
		out = append(out, platformKey{newKEK(secret), made})
	}
	if len(out) == 0 {
		return nil, p.damaged("it has no key")
	}
	return out, nil
}

func (p platformFile) save(list []platformKey) error {
	var b bytes.Buffer
	for _, k := range list {
		fmt.Fprintf(&b, "%s %x %s\n", k.id, k.secret, k.made.UTC().Format(time.RFC3339))
	}
	sum := sha256.Sum256(b.Bytes())
	data := append([]byte(fmt.Sprintf("%s %s %x\n", platformMagic, platformVersion, sum)), b.Bytes()...)
	defer clear(data)
	if err := p.hook("platform key"); err != nil {
		return err
	}
	if err := statefile.Replace(p.path, data, 0o600); err != nil {
		return fmt.Errorf("write the platform key: %w", err)
	}
	return nil
}

// add makes a key, puts it first and gives it when it is durable.
func (p platformFile) add(now time.Time) (kek, error) {
	list, err := p.load()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kek{}, err
	}
	secret := make([]byte, kekSize)
	rand.Read(secret) // never fails
	k := newKEK(secret)
	return k, p.save(slices.Concat([]platformKey{{k, now}}, list))
}

// newest gives the key that wraps.
func (p platformFile) newest() (kek, error) {
	list, err := p.load()
	if err != nil {
		return kek{}, err
	}
	return list[0].kek, nil
}

// find gives the key of an id.
func (p platformFile) find(id string) (kek, error) {
	list, err := p.load()
	if errors.Is(err, fs.ErrNotExist) {
		return kek{}, noKey(fmt.Sprintf("%s is missing", p.path), "put it back from a copy, or run keelblock key restore FILE")
	}
	if err != nil {
		return kek{}, err
	}
	i := slices.IndexFunc(list, func(k platformKey) bool { return k.id == id })
	if i < 0 {
		return kek{}, wrongKey(fmt.Sprintf("%s has no key %s: it is another appliance's, or an old copy", p.path, id),
			"put the right one back, or run keelblock key restore FILE")
	}
	return list[i].kek, nil
}

// prune drops the keys, but for the newest, that nothing is wrapped by.
func (p platformFile) prune(used map[string]bool) error {
	list, err := p.load()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	kept := slices.Clone(list[:1])
	for _, k := range list[1:] {
		if used[k.id] {
			kept = append(kept, k)
		}
	}
	if len(kept) == len(list) {
		return nil
	}
	return p.save(kept)
}

// putAside renames a file that cannot be read as platform keys.
func (p platformFile) putAside() error {
	if err := p.hook("put the platform key aside"); err != nil {
		return err
	}
	for i := 0; ; i++ {
		aside := fmt.Sprintf("%s.damaged-%d", p.path, i)
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			return os.Rename(p.path, aside)
		}
	}
}

func isAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
