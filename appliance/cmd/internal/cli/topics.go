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
	{"retention", "which points are kept, deleted and locked", `Rules, of a machine (machine edit web --keep-daily 7 …) or of one prune:

  --keep-last N       the N newest points
  --keep-hourly N     the newest point of each of the N newest hours that have one;
  --keep-daily N …    so days, ISO weeks (--keep-weekly), months and years

A point that any rule keeps stays; rules do not share. Without rules all stay. Periods are
UTC, or of --time-zone. The newest point of a machine never goes. A point made with backup
--retain-for D stays for D, then goes, and counts for no rule.

What goes is soft-deleted and can be undeleted for the vault's soft-delete period (vault
edit NAME --soft-delete, 14 days); then it is purged, and vault gc frees what only it
needed. recovery-point hold keeps a point from all of this until release.

vault edit NAME --immutability unlocked | locked refuses, with exit status 5, that a point
is deleted, pruned or expires before its time, that a deleted one is purged before its
soft-delete period is over, and that any of these times, or the rules of a machine with
points in it, get shorter. A point's time ends at the latest of
  - --minimum-retention (30 days) after it was made,
  - its --retain-for.
It is stated in the vault when the point is made, and survives rebuild-index. Rules keep
points longer, but lock none: a rule counts points, not days. unlocked can be taken back;
locked by nobody, until the times of all points in the vault are over.

Time is trusted, not only read: a clock that is set forward or back, or is more than a week
ahead after a start, suspends expiry and purging and raises an alert. Set it right, or say
that it is right: vault accept-clock. Locks go by what the appliance has counted itself.`},
	{"exit-status", "what exit statuses mean", `0  done
1  failed
2  wrong usage: a flag, name or number that cannot be right
3  a label lower than the one asked for, or part of the work undone
4  not found
5  refused by policy`},
	{"json", "the output for programs", `--json prints one JSON document on standard output: an object, or an array for lists.
Sizes and counts are integers, every field is present, times are RFC 3339 in UTC or null.

  disk …             Disk
  machine …          Machine, with its Disks
  group …            {name, machines: [Machine]}
  recovery-point …   RecoveryPoint; backup prints it too, of a group an array
  job …              Job; everything with --no-wait prints it too
  disk map           [{offset, length}]
  key …              key domain, an array but for rotate; backup {file, secret, domains, missingVaults}
  vault …            Vault; gc, verify, repair and rebuild-index Job; status, usage and accept-clock
                     an object of their own
  prune              [{pointId, machineName, timeName, keep, reason, uniqueBytes}]
  cursor …           {name, diskName, pointId, frozenAt, createdAt, advancedAt}
  files ls, find     [{path, pathBase64, type, mode, uid, gid, sizeBytes, modifiedAt, links, inode, target, error}]
  files diff         [{path, pathBase64, change, what, old, new}], old and new as files ls has them, or null
  files versions     [{pointId, timeName, frozenAt, state, change, what, sha256, file, error}]
  files cp           {files, folders, failed, bytes, skippedAttributesCount}
  recovery-point diff [{diskName, extents: [{offset, length}]}]

Standard error carries progress and messages, with and without --json.`},
	{"single-files", "how to get single files back", `A file that is lost, on machine web:

  keelblock files versions web:/etc/hostname     the points that have it, newest first
  keelblock files cp web@2026-11-21T19:30:00Z:/etc/hostname .

and ls, find, diff and tar beside cp. They need neither root nor FUSE. A path is the guest's,
from a slash on, or names its volume: web@latest:web0-1/etc/hostname.

To look around with programs of your own:

  keelblock mount DIR -d

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
	{"keys", "encryption at rest: where keys are, and how not to lose them", `Vaults are encrypted. A vault's keys are made with it and never leave the appliance but
wrapped: encrypted by a key of one of these kinds, which --key of vault create and of
key rotate chooses.

  platform     a key of the appliance in DIR/platform.key (the default). Whoever takes the
               whole machine has it; whoever takes the vault's disk alone does not.
  KEYFILE      a file of yours, 32 bytes or more, as they are or in hexadecimal or base64;
               read when the vault is opened, so it may be on a stick:
               head -c 32 /dev/urandom > KEYFILE
  passphrase   asked for at the terminal; a daemon takes it from --passphrase-fd,
               --passphrase-file, systemd's LoadCredential=keelblock.passphrase:PATH or
               $KEELBLOCK_PASSPHRASE, or later from keelblock key unlock
  kms:URL      a key of a key-management service with the transit API of HashiCorp Vault and
               OpenBao: kms:https://HOST:PORT/MOUNT/NAME[?namespace=NS]. The token, whose
               policy allows encrypt, decrypt and rewrap, is in --kms-token-file,
               LoadCredential=keelblock.kms-token:PATH or $VAULT_TOKEN
  none         no encryption; for vault create only

Save the keys: keelblock key backup FILE. It prints a recovery secret, once. The file is
worth nothing without the secret, and the secret nothing without the file; both, kept away
from the machine, are all that is needed to read its vaults.

When keys are lost (platform.key is gone, nobody knows the passphrase), the vault stays
closed, disks are served, and nothing is overwritten:

  keelblock key restore FILE      asks for the recovery secret, and opens the vault

Without an escrow file, nobody can read the vault any more. The wrapped keys are in
DIR/keys and in the vault's own folder; one of the two is enough, with what wraps them.

  keelblock key rotate                          another key wraps; no block is rewritten
  keelblock key rotate --key KEYFILE            and is of another kind
  keelblock key rotate --new-data-key           what is written from now on has a new key

Without keys one sees sizes, which blocks are equal, and which are zero; no contents.`},
	{"recovery", "what to do when something of the appliance is lost or damaged", `keelblock status shows alerts; each says what to do. Disks are served in all of these cases,
and a vault that is closed is left as it is.

platform.key, a key file or a passphrase is lost, or the files with wrapped keys are damaged:
  keelblock key restore FILE             with the escrow file and its secret; see help keys

The index of a vault is damaged or lost (it can be made again from the packs):
  keelblock vault rebuild-index [--vault V]

The folder of a vault is missing or empty at a start. Is its file system not mounted? Mount
it; the vault is opened by itself. Is the disk lost?
  another location has a copy            keelblock vault rebuild-index [--vault V]
  there is no other: a new, empty one    keelblock vault create V

The file system of a vault is mounted read-only. Mount it for writing, and start the daemon
again; the kernel does that by itself to one that is damaged, and fsck comes first.

A location other than the first is lost, or the disk below it is. Backups go on. Put a new
disk or an empty folder in its place; it is filled by itself, or at once by
  keelblock vault repair [--vault V]

Blocks are damaged (keelblock recovery-point verify --all finds out). Another location heals
them, else the next backup, from the live disk. vault status names the points that need what
could not be healed; all others are good.

The file system is full: backups fail, guests go on.
  keelblock prune MACHINE --keep-daily 7 …
  keelblock recovery-point delete P --purge
  keelblock vault gc                     frees what no recovery point needs

The data folder DIR is lost, and the folders of vaults are not (they were on another disk, or
were copied). A vault opens only at its own site; the escrow file knows which that is, and
where its vaults were. On a new DIR, before its first start or after keelblock stop:
  keelblock key restore FILE --site      prints where each vault is looked for
  … put the folders there, the default vault's at DIR/vault; or mount them
  keelblock serve -d
  keelblock key restore FILE             the same file and secret: the vaults open
All points are there: restore disk, restore file, mount and export work. Disks and machines are
made again, by their old names, with keelblock restore disk and machine create. Of a vault's
folder, superblock and packs are enough: vault rebuild-index makes the rest.`},
	{"environment", "environment variables", `KEELBLOCK_DATA   the daemon's folder DIR (--data)
KEELBLOCK_API    the address of the daemon: unix:PATH or https://HOST:PORT (--api)

KEELBLOCK_PASSPHRASE  the passphrase of a vault: for serve, vault create, key rotate, key unlock

For key-management services the daemon knows VAULT_TOKEN, VAULT_CACERT and VAULT_NAMESPACE.

The daemon also knows CREDENTIALS_DIRECTORY and NOTIFY_SOCKET of systemd, and LISTEN_FDS, LISTEN_PID and
LISTEN_FDNAMES, with which systemd hands over sockets; keelblock nbd knows these, too.`},
}

func addTopics(root *cobra.Command) {
	for _, t := range topics {
		root.AddCommand(&cobra.Command{Use: t.name, Short: t.short, Long: t.text})
	}
}
