package vault

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ballastName is of the ballast in a data folder or a vault's folder.
const ballastName = "ballast"

// Ballast is a file of allocated, unused space beside an index. Badger maps a table before
// it writes it: on a file system without a block left that ends the process by SIGBUS, at a
// stop and again at the next start, so the file is given up before. While the daemon runs it
// is given up for what frees space, a deletion or a collection, when that would be refused. It
// is made again when there is room for it.
type Ballast struct {
	Path  string
	Bytes int64
}

// BallastOf is the ballast of an appliance's data folder. bytes 0 is the default of its file
// system.
func BallastOf(dir string, bytes int64) (Ballast, error) {
	if bytes == 0 {
		s, err := SpaceOf(dir)
		if err != nil {
			return Ballast{}, err
		}
		bytes = s.fraction(32, 1<<30)
	}
	return Ballast{Path: filepath.Join(dir, ballastName), Bytes: bytes}, nil
}

// Drop gives the space back when less than low bytes are free, and reports whether
// it did.
func (b Ballast) Drop(low int64) (bool, error) {
	s, err := SpaceOf(parent(b.Path))
	if err != nil || s.Free >= low {
		return false, err
	}
	err = os.Remove(b.Path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Relieve gives the space back when less than need bytes are free, and as many are with it:
// for less it is kept for the next stop and start. It reports whether it did.
func (b Ballast) Relieve(need int64) (bool, error) {
	st, err := os.Stat(b.Path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s, err := SpaceOf(parent(b.Path))
	if err != nil || s.Free+st.Size() < need {
		return false, err
	}
	return b.Drop(need)
}

// Fill makes the file when it is absent and four times its size are free above
// reserve; else it does nothing.
func (b Ballast) Fill(reserve int64) error {
	if st, err := os.Stat(b.Path); b.Bytes == 0 || err == nil && st.Size() == b.Bytes {
		return nil
	}
	s, err := SpaceOf(parent(b.Path))
	if err != nil || s.Free < reserve+4*b.Bytes {
		return err
	}
	f, err := os.OpenFile(b.Path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("make ballast: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, b.Bytes)
	if errors.Is(err, unix.EOPNOTSUPP) { // a file system without fallocate has no ballast
		return errors.Join(f.Close(), os.Remove(b.Path))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("make ballast: %w", err), os.Remove(b.Path))
	}
	return nil
}

// ballast is the vault's own, where its index does not lie on the file system of the data
// folder. Other locations need none: they have packs alone, to which a full file system is
// an ordinary error.
func (v *Vault) ballast() (Ballast, bool) {
	var vault, data unix.Stat_t
	if v.o.DataDir == "" || unix.Stat(v.o.Dir, &vault) != nil || unix.Stat(v.o.DataDir, &data) != nil || vault.Dev == data.Dev {
		return Ballast{}, false
	}
	b, err := BallastOf(v.o.Dir, v.o.BallastBytes)
	return b, err == nil
}

// dropBallast gives the vault's ballast up when its file system is nearly full.
func (v *Vault) dropBallast() {
	b, ok := v.ballast()
	if !ok {
		return
	}
	if dropped, err := b.Drop(v.o.ReserveBytes); err != nil {
		v.o.Logger.Error("the ballast cannot be dropped", "vault", v.o.Name, "error", err)
	} else if dropped {
		v.o.Logger.Warn("the vault's file system is nearly full: its ballast is dropped", "vault", v.o.Name, "bytes", b.Bytes)
	}
}

// fillBallast makes the vault's ballast, if it is to have one.
func (v *Vault) fillBallast() {
	if b, ok := v.ballast(); ok {
		v.fill(b)
	}
}

func (v *Vault) fill(b Ballast) {
	if err := b.Fill(v.o.ReserveBytes); err != nil {
		v.o.Logger.Warn("there is no ballast", "vault", v.o.Name, "error", err)
	}
}

// nearBallast is the ballast on the vault's file system: its own or the data folder's.
func (v *Vault) nearBallast() (Ballast, bool) {
	if b, ok := v.ballast(); ok {
		return b, true
	}
	if v.o.DataDir == "" {
		return Ballast{}, false
	}
	b, err := BallastOf(v.o.DataDir, v.o.BallastBytes)
	return b, err == nil
}

// relieve is for the store: it gives up what lies there for the time when not even what frees
// space has room.
func (v *Vault) relieve(need int64) {
	b, ok := v.nearBallast()
	if !ok {
		return
	}
	if dropped, err := b.Relieve(need); err != nil {
		v.o.Logger.Error("the ballast cannot be dropped", "vault", v.o.Name, "error", err)
	} else if dropped {
		v.o.Logger.Warn("the file system is full: the ballast is dropped so that space can be freed", "vault", v.o.Name, "bytes", b.Bytes)
	}
}

// RestoreBallast makes the ballast on the vault's file system again, if it was given up and
// there is room for it.
func (v *Vault) RestoreBallast() {
	if b, ok := v.nearBallast(); ok {
		v.fill(b)
	}
}
