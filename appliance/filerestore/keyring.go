package filerestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/keelblock/keelblock/blockdev/volume"
	"github.com/keelblock/keelblock/blockdev/volume/luks"
)

// Keyring opens encrypted volumes with what the user gave. To try a passphrase takes
// seconds and up to 1 GiB of memory, so the key of a volume is kept: all points of a
// machine have the same one. A passphrase that failed on a header is not tried on it again.
// It may be used from any number of goroutines, and by several trees.
type Keyring struct {
	secrets [][]byte

	mu    sync.Mutex // held over a trial, as each takes much memory
	keys  map[string]luks.Key
	wrong map[string]error // by what the header says, since a later one may have another slot
}

// NewKeyring takes passphrases and contents of key files. A text editor leaves a line
// feed at the end of a file: such a secret is tried without it, too.
func NewKeyring(secrets [][]byte) *Keyring {
	k := &Keyring{keys: make(map[string]luks.Key), wrong: make(map[string]error)}
	for _, s := range secrets {
		k.secrets = append(k.secrets, s)
		if trimmed, ok := bytes.CutSuffix(s, []byte("\n")); ok && len(trimmed) > 0 {
			k.secrets = append(k.secrets, trimmed)
		}
	}
	return k
}

// unlock finds the key of a volume.
func (k *Keyring) unlock(h *luks.Header) (luks.Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.secrets) == 0 {
		return nil, fmt.Errorf("%s %s: %w; give --key-file FILE (- asks for the passphrase)", h, h.UUID, volume.ErrLocked)
	}
	id := h.Identity()
	if key := k.keys[h.UUID]; key != nil && h.Confirms(key) {
		return key, nil
	}
	if err := k.wrong[id]; err != nil {
		return nil, err
	}
	var err error
	for _, s := range k.secrets {
		var key luks.Key
		if key, err = h.Unlock(s); err == nil {
			k.keys[h.UUID] = key
			return key, nil
		}
		if !errors.Is(err, luks.ErrPassphrase) {
			return nil, err // it could not be read; another time it may
		}
	}
	err = fmt.Errorf("%s %s: %w; give another --key-file FILE (- asks for the passphrase)", h, h.UUID, err)
	k.wrong[id] = err
	return nil, err
}

// Locked says of each encrypted volume of a point that stays closed why, and what to do.
// It hides what lies in it, so whoever misses a file wants to know.
func (t *Tree) Locked(ctx context.Context, machine, point string) []error {
	m, err := machineDir{t, machine}.machine(ctx)
	if err != nil {
		return nil
	}
	p, ok := findPoint(m.points, point)
	if !ok {
		return nil
	}
	var out []error
	for _, v := range t.volumes(p).find(p).vols {
		if err := v.node.Err; errors.Is(err, volume.ErrLocked) || errors.Is(err, luks.ErrPassphrase) {
			out = append(out, fmt.Errorf("volume %s: %w", v.name, err))
		}
	}
	return out
}
