# XFS version 4, which newer kernels do not mount, and recovery of the log by this kernel.
# A case is volume.img and volume.manifest. Those of a crash were copied after the file
# system was shut down in the middle of its work; the manifest is what this kernel shows
# after it has recovered the log.
modprobe xfs
# mkfs.xfs makes less than 300 MB.
export TEST_DIR=x TEST_DEV=x QA_CHECK_FS=x
quiet() { "$@" >>/tmp/tools.log 2>&1 || { tail -n 5 /tmp/tools.log; return 1; }; }
mkdir -p /mnt2

# tree DIR: all forms of directories, files, links and attributes. In perl, since a guest
# without KVM needs long to start a program.
tree() {
  fill $1
  perl - $1 <<'PERL'
    use Fcntl;
    my $d = shift;
    my $name = sub { sprintf "%s%04d", "n" x 60, shift };
    for my $n (3, 20, 150, 700) {
      mkdir "$d/dir$n" or die;
      for my $i (1 .. $n) { link "$d/numbers", "$d/dir$n/" . $name->($i) or die $! }
    }
    for (my $i = 1; $i < 100; $i += 2) { unlink "$d/dir150/" . $name->($i) or die }
    open my $f, ">", "$d/pieces" or die;
    for my $i (1 .. 60) { seek $f, $i * 8000, 0; print $f "piece $i" x 100 }
    close $f or die;
    symlink "t" x $_, "$d/link$_" or die for 5, 150, 400, 1000;
    open $f, ">", "/tmp/attributes" or die;
    print $f "# file: $d/numbers\n";
    print $f "user.a$_=\"" . "v" x 150 . "\"\n" for 1 .. 60;
    print $f "\n# file: $d/zeros\nuser.large=\"" . "w" x 9000 . "\"\n";
    print $f "\n# file: $d/etc\ntrusted.small=\"s\"\n";
    close $f or die;
PERL
  setfattr --restore=/tmp/attributes
  truncate -s 5G $1/sparse
  fallocate -o 100000 -l 200000 $1/sparse
  setfacl -m u:1000:rwx,g:70000:r $1/etc/hostname
  mknod $1/null c 1 3
  mkfifo $1/fifo
  chown 7:70000 $1/zeros
  touch -d '1960-01-01 00:00:00.123456789' $1/etc/empty
}

# clean CASE SIZE MKFS...
clean() {
  case_begin $1
  local l=$(disk volume.img $2)
  quiet mkfs.xfs -q -f "${@:3}" $l
  mount $l /mnt2
  tree /mnt2
  umount /mnt2
  mount -o ro $l /mnt2
  fsguest manifest /mnt2 >volume.manifest
  umount /mnt2
  free $l
  case_end
}

# crash CASE SIZE MKFS...
crash() {
  case_begin $1
  local l=$(disk work.img $2) i
  quiet mkfs.xfs -q -f "${@:3}" $l
  mount $l /mnt2
  mkdir /mnt2/old
  perl -e 'for (1 .. 100) { open F, ">", "/mnt2/old/$_"; print F "old $_\n"; close F or die }'
  sync
  tree /mnt2
  perl -e 'unlink "/mnt2/old/$_" or die for 1 .. 40; rename "/mnt2/old/$_", "/mnt2/moved$_" or die for 41 .. 70;
    for (71 .. 100) { open F, ">", "/mnt2/old/$_"; print F "new $_\n"; close F or die }'
  rm -r /mnt2/dir20 /mnt2/many
  mkdir /mnt2/last
  echo last >/mnt2/last/file
  xfs_io -c fsync /mnt2/last/file
  echo not synced >/mnt2/last/lost
  quiet xfs_io -x -c shutdown /mnt2
  umount /mnt2
  sync
  cp --sparse=always work.img volume.img
  mount $l /mnt2
  fsguest manifest /mnt2 >volume.manifest
  umount /mnt2
  free $l
  rm work.img
  case_end
}

clean v4 24M -m crc=0 -b size=1024 -i size=256 -n ftype=0
clean v4-ftype 24M -m crc=0 -b size=512 -n size=4096,ftype=1
crash v4-crash 24M -m crc=0 -b size=1024 -n ftype=0
crash v4-crash-log-v1 24M -m crc=0 -i size=256 -l version=1
crash v5-crash 24M -b size=1024 -n size=4096 -m rmapbt=1
