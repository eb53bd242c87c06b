// Command fsguest is what the guest of vmlab -images runs to write down what its kernel
// shows.
//
//	fsguest manifest DIR          the manifest on standard output (fstest.Manifest.Text)
//	fsguest content NAME DEVICE   a line "NAME SIZE SHA-256" about all bytes of a device
//
// -ignore names the fields that a manifest leaves out.
package main

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// fields by their names in a manifest.
var fields = map[string]fstest.Fields{
	"inode": fstest.FieldInode, "blocks": fstest.FieldBlocks, "data": fstest.FieldData,
	"atime": fstest.FieldAtime, "ctime": fstest.FieldCtime, "birth": fstest.FieldBirth, "dirsize": fstest.FieldDirSize,
}

func main() {
	ignore := flag.String("ignore", "atime", "fields that the manifest leaves out, with commas between")
	flag.Parse()
	if err := run(flag.Args(), *ignore); err != nil {
		fmt.Fprintln(os.Stderr, "fsguest:", err)
		os.Exit(1)
	}
}

func run(args []string, ignore string) error {
	switch {
	case len(args) == 2 && args[0] == "manifest":
		return manifest(args[1], ignore)
	case len(args) == 3 && args[0] == "content":
		return content(args[1], args[2])
	}
	return fmt.Errorf("usage: fsguest manifest DIR | content NAME DEVICE, not %q", args)
}

func manifest(dir, ignore string) error {
	var left fstest.Fields
	for name := range strings.SplitSeq(ignore, ",") {
		f, ok := fields[name]
		if !ok && name != "" {
			return fmt.Errorf("no field of a manifest is called %q", name)
		}
		left |= f
	}
	m, err := fstest.FromDir(dir)
	if err != nil {
		return err
	}
	_, err = io.WriteString(os.Stdout, m.Text(left))
	return err
}

func content(name, device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%s %d %x\n", name, n, h.Sum(nil))
	return err
}
