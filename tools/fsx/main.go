// Command fsx exercises a file against a copy in memory: random writes, reads, maps,
// truncations, holes and zeroes, each followed sooner or later by a read that must
// agree. It is small, static, and runs in the lab's guests.
//
//	fsx -ops 5000 -seed 7 -size 4194304 FILE...
//	fsx -fixed -ops 1000 FILE        a file or device whose size cannot change
//	fsx -for 30s FILE
//
// What the file system cannot do (a hole on FAT, a map on some FUSE mounts) is left out
// after its first refusal and named at the end. Caches are dropped often, so that what
// is read comes from below the file system.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	var o options
	flag.Int64Var(&o.seed, "seed", 1, "of the random operations")
	flag.IntVar(&o.ops, "ops", 1000, "operations for each file, unless -for is given")
	flag.DurationVar(&o.duration, "for", 0, "go on for so long instead")
	flag.Int64Var(&o.size, "size", 4<<20, "largest size of a file, in bytes")
	flag.BoolVar(&o.fixed, "fixed", false, "the file is there and its size cannot change")
	flag.Parse()
	if flag.NArg() == 0 || o.size < minSize {
		fmt.Fprintf(os.Stderr, "usage: fsx [flags] FILE...; -size is at least %d\n", minSize)
		flag.PrintDefaults()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "fsx:", err)
		stop()
		os.Exit(1)
	}
}

type options struct {
	seed     int64
	ops      int
	duration time.Duration
	size     int64
	fixed    bool
}

// run exercises the files in turns, one operation each.
func run(ctx context.Context, o options, paths []string) (err error) {
	var files []*exercised
	defer func() {
		for _, f := range files {
			if closeErr := f.close(); err == nil {
				err = closeErr
			}
		}
	}()
	for i, path := range paths {
		f, err := open(path, o, o.seed+int64(i))
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	began, done := time.Now(), 0
	for ctx.Err() == nil && (o.duration > 0 && time.Since(began) < o.duration || o.duration == 0 && done < o.ops) {
		for _, f := range files {
			if err := f.step(); err != nil {
				return fmt.Errorf("%s, operation %d of seed %d: %w", f.path, done, f.seed, err)
			}
		}
		done++
	}
	lacks := map[string]bool{}
	for _, f := range files {
		if err := f.check(); err != nil {
			return fmt.Errorf("%s, at the end of seed %d: %w", f.path, f.seed, err)
		}
		for what := range f.lacks {
			lacks[what] = true
		}
	}
	without := ""
	if len(lacks) > 0 {
		var names []string
		for what := range lacks {
			names = append(names, what)
		}
		without = ", without " + strings.Join(names, ", ")
	}
	fmt.Printf("fsx: %d operations on each of %d files, seed %d, %.0f s%s: ok\n", done, len(files), o.seed, time.Since(began).Seconds(), without)
	return nil
}
