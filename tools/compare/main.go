// Command compare is `make bench`: it measures Keelblock beside other tools on the
// same machine in the same run, and prints one line per row:
//
//	row  ours  peer  ratio  goal  ok|missed
//
// A ratio above 1 means that ours is better, whatever the unit. A goal does not move
// because it is missed. Rows that only inform have none.
//
//	compare -bin bin/keelblock                 all rows
//	compare -only nbd|backup|restore|vault|mount|files     one group
//	compare -only nbd -row REGEXP              some rows of that group
//	compare -only vault -row REGEXP            some of life, patches, locations, index
//	compare -only files -row REGEXP            some of many, large, small
//	compare -results FILE                      also as Markdown, with machine and versions;
//	                                           rows of the file that are not measured stay
//
// What makes a figure meaningless, and what is done about it: each side runs in
// turn, several rounds, and the median of the rounds' ratios counts; both read a
// warm page cache, or both a cold one where the row says so; both end with the data on
// disk (sync), not in memory.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/keelblock/keelblock/tools/rig"
)

func main() {
	bin := flag.String("bin", "bin/keelblock", "the keelblock binary")
	only := flag.String("only", "", "one group of rows: nbd, backup, restore, vault, mount, files")
	pick := flag.String("row", ".", "rows of the group nbd, or parts of the groups vault and files, to measure, a regular expression")
	content := flag.Int64("content", 768, "MiB of this machine's files on the measured disk")
	rounds := flag.Int("rounds", 3, "how often each side runs")
	results := flag.String("results", "", "write the rows to this Markdown file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	if err := run(ctx, *bin, *only, *pick, *content<<20, *rounds, *results); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		stop()
		os.Exit(1)
	}
}

// groups are the kinds of rows, in the order in which they run.
var groups = []string{"nbd", "backup", "restore", "vault", "mount", "files"}

func run(ctx context.Context, bin, only, pick string, contentBytes int64, rounds int, results string) (err error) {
	if only != "" && !slices.Contains(groups, only) {
		return fmt.Errorf("there is no group %q; there are %v", only, groups)
	}
	if rounds < 1 {
		return fmt.Errorf("rounds must be at least 1, not %d", rounds)
	}
	wanted := func(group string) bool { return only == "" || only == group }
	t := newTable(os.Stdout)
	if wanted("nbd") {
		if err := nbdRows(ctx, bin, pick, t); err != nil {
			return fmt.Errorf("nbd: %w", err)
		}
	}
	if wanted("backup") || wanted("restore") || wanted("vault") || wanted("mount") || wanted("files") {
		if err := rig.Need("restic", "borg", "cp", "sfdisk", "mke2fs", "qemu-img"); err != nil {
			return err
		}
		if only == "files" {
			contentBytes = 1 << 20 // it has disks of its own
		}
		b, err := newBench(ctx, bin, contentBytes, rounds, t)
		if err != nil {
			return err
		}
		defer func() {
			if closeErr := b.close(); err == nil {
				err = closeErr
			}
		}()
		if wanted("backup") {
			if err := b.backupRows(); err != nil {
				return fmt.Errorf("backup: %w", err)
			}
		}
		if wanted("restore") {
			if err := b.restoreRows(); err != nil {
				return fmt.Errorf("restore: %w", err)
			}
		}
		if wanted("vault") {
			if err := b.vaultRows(pick); err != nil {
				return fmt.Errorf("vault: %w", err)
			}
		}
		if wanted("mount") {
			if err := b.mountRows(); err != nil {
				return fmt.Errorf("mount: %w", err)
			}
		}
		if wanted("files") {
			if err := b.filesRows(pick); err != nil {
				return fmt.Errorf("files: %w", err)
			}
		}
	}
	if results != "" {
		return t.writeMarkdown(ctx, results)
	}
	return nil
}
