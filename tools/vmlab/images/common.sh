#!/bin/bash
# The frame of a set of images: runs in the guest as root, from the disk of orders, and
# then what is in "set" beside it. Lines that begin with "LAB: " are read by the host.
set -eu -o pipefail
exec </dev/null
export PATH=/mnt:$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8
case_name=start
say() { echo "LAB: $*"; }
fail() {
  trap - ERR
  dmesg | tail -n 25
  cd /
  rm -rf /out/cases/$case_name
  sync
  say "fail $case_name: $*"
  sync
  sleep 600 # the host ends the guest
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
set -E
# case_begin NAME: what is left in the current folder becomes NAME.zip
case_begin() {
  case_name=$1
  say "begin $1"
  mkdir -p /out/cases/$1
  cd /out/cases/$1
}
case_end() { cd /; }
# disk NAME SIZE: a blank disk image in the current folder; prints its loop device
disk() {
  truncate -s $2 $1
  losetup -f --show $1
}
# free LOOP...: the loop devices are gone and all is in the images
free() {
  local l
  sync
  for l in "$@"; do losetup -d $l; done
  udevadm settle
}
# fill DIR: a small tree that every file system can hold
fill() {
  local d=$1 i
  mkdir -p $d/etc/deep/er/and/deeper $d/many
  echo guest >$d/etc/hostname
  seq 1 30000 >$d/numbers
  head -c 100000 /dev/zero >$d/zeros
  for i in $(seq 120); do echo "entry $i" >$d/many/entry-$i.txt; done
  rm $d/many/entry-7*.txt
  seq 5 | sha256sum >$d/etc/deep/er/and/deeper/sum
  : >$d/etc/empty
}
mkdir -p /out
mount -o noatime /dev/vdc /out
say "kernel $(uname -r)"
modprobe loop max_loop=64
. /mnt/set
sync
umount /out
say "done"
sleep 600 # the host ends the guest
