package cli

import "github.com/spf13/cobra"

// topics are what keelblock help TOPIC explains beside the verbs.
var topics = []struct{ name, short, text string }{
	{"points", "how recovery points are named", `A recovery point is named by

  its id, or a beginning of it that no other id has
  MACHINE@latest                      its newest point
  MACHINE@latest-application          its newest application-consistent point
  MACHINE@2026-11-21T19:30:00Z        its newest point at or before that time (UTC);
                                      with milliseconds: 2026-11-21T19:30:00.250Z;
                                      a time without them is the whole second

A disk of the point follows after a colon: web@latest:web0, 3f2a9c:web0. A point with
one disk needs none. A time ends at its Z, so the colons in it do no harm.`},
	{"names", "names and sizes", `Names of disks, machines, groups, cursors and exports: 1 to 63 of a-z 0-9 . _ -
beginning with a letter or digit. A group and a machine share no name.

Sizes: 64MiB, 8GiB, 1TiB or plain bytes. The size of a disk is a multiple of 512 bytes.`},
	{"consistency", "what the labels of a point promise", `application   scripts or the guest agent's hooks stopped the applications around the cut
filesystem    the guest agent froze all file systems for the cut
crash         the disks are as after a power cut: journals replay, databases recover

All disks of a machine are cut at the same instant with every label. Without
--consistency the best that can be had is taken, and the point's reason says what
was missing. With it, a lower label is exit status 3; the point is kept.`},
	{"exit-status", "what exit statuses mean", `0  done
1  failed
2  wrong usage: a flag, name or number that cannot be right
3  a label lower than the one asked for, or part of the work undone
4  not found
5  refused by policy`},
	{"json", "the output for programs", `--json prints one JSON document on standard output: an object, or an array for lists.
Numbers are integers, every field is present, times are RFC 3339 in UTC or null.

  disk …             Disk
  machine …          Machine, with its Disks
  group …            {name, machines: [Machine]}
  recovery-point …   RecoveryPoint; backup prints it too, of a group an array
  job …              Job; everything with --no-wait prints it too
  disk map           [{offset, length}]
  cursor …           {name, diskName, pointId, frozenAt, createdAt, advancedAt}
  recovery-point diff [{diskName, extents: [{offset, length}]}]

Standard error carries progress and messages, with and without --json.`},
	{"single-files", "how to get single files back", `  keelblock mount DIR -d

shows every point as MACHINE/TIME/, and MACHINE/latest/ for the newest:

  DISK.raw                the disk, sparse, for qemu-img or testdisk
  volumes/DISK-N/         the files of partition N (0: no partition table)
  STATUS                  what could not be read, and why

A point is also found by its id, as MACHINE/ID/, which is not listed.

Copy what you need with cp -a, rsync or tar. The mount reads only. End it with
keelblock umount DIR.

An ordinary user can mount too, with fusermount3 (Debian: fuse3) and a way to the daemon's
sockets. For the members of a group:

  chgrp GROUP DATA DATA/run && chmod g+s DATA/run     and start the daemon anew`},
	{"environment", "environment variables", `KEELBLOCK_DATA   the daemon's folder DIR (--data)
KEELBLOCK_API    the address of the daemon: unix:PATH or https://HOST:PORT (--api)

The daemon also knows NOTIFY_SOCKET of systemd, and LISTEN_FDS, LISTEN_PID and
LISTEN_FDNAMES, with which systemd hands over sockets; keelblock nbd knows these, too.`},
}

func addTopics(root *cobra.Command) {
	for _, t := range topics {
		root.AddCommand(&cobra.Command{Use: t.name, Short: t.short, Long: t.text})
	}
}
