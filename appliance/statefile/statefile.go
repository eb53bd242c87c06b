package statefile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	magic   = "keelblock-state"
	version = 1
	// maxSize bounds a document: 100 000 disks take 30 MiB.
	maxSize = 64 << 20
	// copySuffix names the second file.
	copySuffix = ".copy"
)

// ErrDamaged: magic, version, kind or checksum of a state file is wrong.
var ErrDamaged = errors.New("state file is damaged or of an unknown version")

// Loaded says which state Load found.
type Loaded struct {
	// Serial of the document; 0 when neither file exists.
	Serial uint64
	// Damage of the file that was not used, or nil. An operator should know.
	Damage error
}

// Save writes v as the document of path and of its copy. serial must be higher
// than that of the last Save. The state is durable when Save returns nil; after an
// error the old or the new state may be found.
func Save(path, kind string, serial uint64, v any) error {
	doc, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	doc = append(doc, '\n')
	head := fmt.Sprintf("%s %d %s %d %s\n", magic, version, kind, serial, checksum(kind, serial, doc))
	data := append([]byte(head), doc...)
	for _, p := range []string{path, path + copySuffix} {
		if err := Replace(p, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Load reads the newest whole document of path into v. A path that was never saved
// gives serial 0 and leaves v alone.
func Load(path, kind string, v any) (Loaded, error) {
	doc1, serial1, err1 := read(path, kind)
	doc2, serial2, err2 := read(path+copySuffix, kind)
	absent1, absent2 := errors.Is(err1, fs.ErrNotExist), errors.Is(err2, fs.ErrNotExist)
	switch {
	case absent1 && absent2:
		return Loaded{}, nil
	case err1 != nil && err2 != nil:
		return Loaded{}, fmt.Errorf("load %w; and its copy %w", err1, err2)
	}
	doc, l := doc1, Loaded{Serial: serial1}
	switch {
	case err1 != nil:
		doc, l = doc2, Loaded{Serial: serial2, Damage: err1}
	case err2 != nil && !absent2:
		l.Damage = err2
	case err2 == nil && serial2 > serial1:
		doc, l = doc2, Loaded{Serial: serial2}
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return Loaded{}, fmt.Errorf("load %s: %w: %w", path, ErrDamaged, err)
	}
	return l, nil
}

// Remove removes path and its copy, durably. Absent files are no error.
func Remove(path string) error {
	for _, p := range []string{path + copySuffix, path} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove state: %w", err)
		}
	}
	return SyncDir(filepath.Dir(path))
}

// Replace writes a file so that a reader, also one after a power cut, sees the old
// bytes or the new ones whole.
func Replace(path string, data []byte, mode os.FileMode) (err error) {
	unborn := path + ".new" // one name: what a kill leaves is overwritten next time
	tmp, err := os.OpenFile(unborn, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(unborn))
		}
	}()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(unborn, path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the entries of a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	err = d.Sync()
	if err = errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// read returns the verified document of one file.
func read(path, kind string) (doc []byte, serial uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	doc, serial, err = parse(data, kind)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	return doc, serial, nil
}

// parse checks the header line and the checksum.
func parse(data []byte, kind string) (doc []byte, serial uint64, err error) {
	head, doc, ok := bytes.Cut(data, []byte("\n"))
	if !ok || len(data) > maxSize || len(head) > 256 {
		return nil, 0, fmt.Errorf("%w: no header line", ErrDamaged)
	}
	f := strings.Split(string(head), " ")
	if len(f) != 5 || f[0] != magic {
		return nil, 0, fmt.Errorf("%w: no magic", ErrDamaged)
	}
	if f[1] != strconv.Itoa(version) {
		return nil, 0, fmt.Errorf("%w: version %q", ErrDamaged, f[1])
	}
	if f[2] != kind {
		return nil, 0, fmt.Errorf("%w: it holds %q, not %q", ErrDamaged, f[2], kind)
	}
	serial, err = strconv.ParseUint(f[3], 10, 64)
	if err != nil || serial == 0 {
		return nil, 0, fmt.Errorf("%w: serial %q", ErrDamaged, f[3])
	}
	if f[4] != checksum(kind, serial, doc) {
		return nil, 0, fmt.Errorf("%w: checksum mismatch", ErrDamaged)
	}
	return doc, serial, nil
}

func checksum(kind string, serial uint64, doc []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", kind, serial)
	h.Write(doc)
	return hex.EncodeToString(h.Sum(nil))
}
