#!/bin/bash
# What the guest of the scenario attach does; root, from the disk of orders. Lines that
# begin with "LAB: " are read by the host, "wait NAME" until it answers.
set -eu -o pipefail
exec </dev/ttyS0
stty -echo 2>/dev/null || true
here=/mnt
step=start
say() { echo "LAB: $*"; }
fail() {
  dmesg | tail -n 25
  say "fail $step: $*"
  sync
  sleep 600 # the host ends the guest
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
set -E
begin() { step=$1; say "begin $step"; }
wait_for_host() {
  say "wait $1"
  local line
  read -r line
}
# until_true SECONDS COMMAND...
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || fail "not within the time: $*"
    sleep 0.2
  done
}
errors() { dmesg | grep -E 'I/O error|EXT4-fs error|Buffer I/O|remounting filesystem read-only' || true; }
queue() {
  local q=/sys/block/$1/queue
  say "queue $1 write_cache=$(tr ' ' - <$q/write_cache) fua=$(cat $q/fua) discard_max_bytes=$(cat $q/discard_max_bytes)" \
    "write_zeroes_max_bytes=$(cat $q/write_zeroes_max_bytes) logical_block_size=$(cat $q/logical_block_size) size=$(cat /sys/block/$1/size) ro=$(cat /sys/block/$1/ro)"
}
. $here/settings
say "kernel $(uname -r)"
modprobe nbd
export KEELBLOCK_DATA=/var/lib/keelblock PATH=$here:$PATH
mkdir -p /a /b $KEELBLOCK_DATA

kernel_client() {
  begin "nbd-client"
  modprobe virtio_net
  until_true 20 test -e /sys/class/net/*/device
  local net
  net=$(basename "$(dirname /sys/class/net/*/device)")
  ip link set "$net" up
  ip addr add 10.0.2.15/24 dev "$net"
  connect_client
  queue nbd0
  say "client connections $(nbd_connections)"
  mkfs.ext4 -q /dev/nbd0
  mount /dev/nbd0 /a
  say "$(fsx -seed "$seed" -ops "$ops" -size 2097152 /a/f1 /a/f2 /a/f3)"
  rm /a/f1
  sync
  say "$(fstrim -v /a)"
  say "$(fsx -seed $((seed + 1)) -ops "$ops" -size 2097152 /a/f4)"
  (cd /a && sha256sum f2 f3 f4 >/tmp/sums)
  umount /a
  e2fsck -fn /dev/nbd0 >/tmp/fsck.log 2>&1 || fail "$(cat /tmp/fsck.log)"
  say "fsck clean"
  begin "restart under nbd-client"
  wait_for_host restart
  # nbd-client 3.24 takes the end of its ioctl for the user's wish (issue 93 of the NBD
  # project), so -persist may do nothing. Which it is, is reported.
  sleep 10
  if has_size; then
    say "nbd-client has reconnected by itself"
  else
    say "nbd-client -persist did not reconnect; it is started again"
    nbd-client -d /dev/nbd0 >/dev/null 2>&1 || true
    connect_client
  fi
  mount /dev/nbd0 /a
  (cd /a && sha256sum -c --quiet /tmp/sums)
  say "$(fsx -seed $((seed + 2)) -ops "$ops" -size 2097152 /a/f5)"
  umount /a
  e2fsck -fn /dev/nbd0 >/tmp/fsck.log 2>&1 || fail "$(cat /tmp/fsck.log)"
  nbd-client -d /dev/nbd0 >/dev/null
  say "goes on after the restart"
}
has_size() { [ "$(cat /sys/block/nbd0/size)" != 0 ]; }
connect_client() {
  nbd-client 10.0.2.2 $port /dev/nbd0 -N a -C 2 -persist -nonetlink -block-size 512 >/tmp/client.log 2>&1 || fail "$(cat /tmp/client.log)"
  until_true 20 has_size
}
nbd_connections() { ss -tnH state established "dport = :$port" | wc -l; }

daemon_pid() { head -c 11 $KEELBLOCK_DATA/lock | tr -d ' '; }
# entries writes numbered files for ever, each with fsync.
entries() {
  local n=0
  while [ ! -e /tmp/enough ]; do
    n=$((n + 1))
    echo "entry $n" | dd of=/b/e$n conv=fsync status=none || { echo "entry $n failed" >/tmp/entries.failed; return; }
    echo $n >/tmp/entries
  done
}
newest() { cat /tmp/entries 2>/dev/null || echo 0; }
reached() { [ "$(newest)" -ge "$1" ]; }
attached_disk() {
  begin "attach"
  keelblock serve -d >/dev/null
  keelblock disk create d0 --size 256MiB >/dev/null
  keelblock machine create m --disk d0 >/dev/null
  say "attached $(keelblock disk attach d0 /dev/nbd1)"
  queue nbd1
  keelblock disk attach d0 /dev/nbd2 2>/tmp/refused && fail "a second attach was not refused"
  say "refused: $(cat /tmp/refused)"
  keelblock --yes disk delete d0 2>/tmp/refused && fail "the delete of an attached disk was not refused"
  say "refused: $(cat /tmp/refused)"
  mkfs.ext4 -q /dev/nbd1
  mount -o discard /dev/nbd1 /b
  rm -f /tmp/entries /tmp/enough /tmp/entries.failed
  entries &
  local writer=$!
  fsx -seed "$seed" -for 1h -size 1048576 /b/x1 /b/x2 >/tmp/fsx.log 2>&1 &
  local exerciser=$!
  until_true 180 reached 10
  begin "kill -9 of the daemon"
  kill -9 "$(daemon_pid)"
  sleep 2
  local stalled=$(newest)
  sleep 2
  [ "$(newest)" = "$stalled" ] || fail "entry $(newest) was written without a daemon"
  say "I/O waits at entry $stalled"
  local began=$SECONDS
  keelblock serve -d >/dev/null
  until_true 180 reached $((stalled + 10))
  say "goes on: entry $(newest), $((SECONDS - began)) s after the start began"
  begin "backup of an attached disk"
  keelblock backup m >/dev/null
  begin "resize of a mounted disk"
  keelblock disk resize d0 --size 320MiB >/dev/null
  [ "$(cat /sys/block/nbd1/size)" = $((320 * 2048)) ] || fail "the kernel sees $(cat /sys/block/nbd1/size) sectors"
  resize2fs /dev/nbd1 >/tmp/resize.log 2>&1 || fail "$(cat /tmp/resize.log)"
  keelblock backup m >/dev/null
  say "resized: $(df --output=size -h /b | tail -n 1 | tr -d ' ') usable"
  begin "stop and start of the daemon"
  stalled=$(newest)
  keelblock stop
  began=$SECONDS
  keelblock serve -d >/dev/null
  until_true 180 reached $((stalled + 10))
  say "goes on: entry $(newest), $((SECONDS - began)) s after the start began"
  begin "detach"
  keelblock disk detach d0 2>/tmp/refused && fail "the detach of a mounted device was not refused"
  say "refused: $(cat /tmp/refused)"
  touch /tmp/enough
  wait $writer
  [ ! -e /tmp/entries.failed ] || fail "$(cat /tmp/entries.failed)"
  kill -TERM $exerciser
  wait $exerciser || fail "$(cat /tmp/fsx.log)"
  say "$(cat /tmp/fsx.log)"
  local n
  for n in $(seq "$(newest)"); do
    [ "$(cat /b/e$n)" = "entry $n" ] || fail "entry $n is damaged"
  done
  say "entries $(newest)"
  umount /b
  e2fsck -fn /dev/nbd1 >/tmp/fsck.log 2>&1 || fail "$(cat /tmp/fsck.log)"
  keelblock disk detach d0
  [ ! -e /sys/block/nbd1/pid ] || fail "the device is still connected"
  keelblock restore file m@latest:d0 /tmp/point.raw 2>/dev/null
  e2fsck -fp /tmp/point.raw >/tmp/fsck.log 2>&1 || [ $? = 1 ] || fail "$(cat /tmp/fsck.log)"
  e2fsck -fn /tmp/point.raw >/tmp/fsck.log 2>&1 || fail "$(cat /tmp/fsck.log)"
  rm /tmp/point.raw
  say "fsck clean, of the disk and of its point"
  begin "attach read-only"
  keelblock disk attach d0 /dev/nbd3 --read-only --connections 1 >/dev/null
  queue nbd3
  mount -o ro /dev/nbd3 /b
  [ "$(cat /b/e1)" = "entry 1" ]
  umount /b
  dd if=/dev/zero of=/dev/nbd3 bs=4096 count=1 oflag=direct status=none 2>/dev/null && fail "a read-only device was written"
  udevadm settle # it looks at what was open for writing, and would see the end
  keelblock disk detach d0
  keelblock --yes machine delete m
  keelblock --yes disk delete d0
  keelblock stop
  [ -z "$(errors)" ] || fail "the kernel says: $(errors | head -n 3)"
  say "no I/O error in the kernel's log"
}
for part in $parts; do $part; done
say "done"
sleep 600 # the host ends the guest
