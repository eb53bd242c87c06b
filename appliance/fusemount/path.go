package fusemount

import (
	"fmt"
	"strings"
	"sync"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// maxNames bounds what is remembered of names, for messages only.
const maxNames = 8192

// names remembers under which name an inode of a volume was last met, so that a
// problem can be told with the path of the file and not with a number alone. When it
// is full it begins anew: a file is read soon after it was looked up.
type names struct {
	mu sync.Mutex
	m  map[filesystem.Inode]place
}

type place struct {
	dir  filesystem.Inode
	name string
}

func (n *names) met(dir filesystem.Inode, name string, ino filesystem.Inode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.m == nil || len(n.m) >= maxNames {
		n.m = make(map[filesystem.Inode]place)
	}
	n.m[ino] = place{dir, name}
}

// describe is the inode's number, and its path as far as it is known.
func (n *names) describe(ino filesystem.Inode) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var path []string
	for at, depth := ino, 0; depth < 64; depth++ {
		p, ok := n.m[at]
		if !ok {
			break
		}
		path = append([]string{p.name}, path...)
		at = p.dir
	}
	if len(path) == 0 {
		return fmt.Sprintf("inode %d", ino)
	}
	return fmt.Sprintf("%q (inode %d)", strings.Join(path, "/"), ino)
}
