#!/usr/bin/env bash
# Installs the Debian packages that tests, the demo and the benchmarks use.
#
#   deps.sh           install what is missing (once, by apt-get; root or sudo)
#   deps.sh --check   say what is missing; exit 1 if anything is
#   deps.sh --vm      the same with what `make test-vm` needs
#
# It looks for commands and files, not for packages, so a second run costs
# milliseconds and a tool installed by hand counts.
set -u

# command-or-file   package
base='
qemu-img            qemu-utils
qemu-io             qemu-utils
nbdcopy             libnbd-bin
nbdinfo             libnbd-bin
nbdsh               libnbd-bin
nbdfuse             libnbd-bin
/usr/lib/python3/dist-packages/nbd.py python3-libnbd
nbdkit              nbdkit
fio                 fio
fusermount3         fuse3
mke2fs              e2fsprogs
debugfs             e2fsprogs
mkfs.xfs            xfsprogs
mkfs.btrfs          btrfs-progs
mkfs.vfat           dosfstools
mcopy               mtools
mkfs.exfat          exfatprogs
ntfs-3g             ntfs-3g
sfdisk              fdisk
cryptsetup          cryptsetup-bin
setfattr            attr
setfacl             acl
losetup             mount
restic              restic
borg                borgbackup
curl                curl
strace              strace
ip                  iproute2
gcc                 gcc
/usr/include/stdio.h libc6-dev
'
vm='
qemu-system-x86_64  qemu-system-x86
mmdebstrap          mmdebstrap
'

PATH=$PATH:/usr/sbin:/sbin
mode=install
wanted=$base
for arg in "$@"; do
  case $arg in
    --check) mode=check ;;
    --vm) wanted=$base$vm ;;
    *) echo "usage: deps.sh [--check] [--vm]" >&2; exit 2 ;;
  esac
done

missing=
while read -r what package; do
  [ -n "$what" ] || continue
  case $what in
    /*) [ -e "$what" ] && continue ;;
    *) command -v "$what" >/dev/null 2>&1 && continue ;;
  esac
  case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
done <<EOF
$wanted
EOF
missing=${missing# }
[ -z "$missing" ] && exit 0

if [ "$mode" = check ]; then
  echo "missing: $missing" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
  echo "deps: no apt-get on this system; please install what corresponds to: $missing" >&2
  exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
  if command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    as_root=sudo
  else
    echo "deps: not root and no sudo; please run: apt-get install -y --no-install-recommends $missing" >&2
    exit 1
  fi
fi
echo "deps: installing $missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"; }
# An update that fails for one foreign source must not stop the install.
apt update -q -q >&2 || echo "deps: apt-get update failed; trying with the lists at hand" >&2
# shellcheck disable=SC2086  # a list of words
if apt install -y -q -q --no-install-recommends $missing >&2; then
  exit 0
fi
# One package that cannot be had must not keep the others away.
status=0
for package in $missing; do
  apt install -y -q -q --no-install-recommends "$package" >&2 || { echo "deps: $package could not be installed" >&2; status=1; }
done
exit $status
