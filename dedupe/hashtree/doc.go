// Package hashtree keeps the content of one disk at one instant as a tree of
// digests, so that equal disks are told apart from different ones in one
// comparison and a difference is found in time linear in what differs.
//
// # Place in the data path
//
//	ingest → Writer → nodes in a dedupe.Batch → Root → manifest
//	Root → Lookup, Runs, Walk → recovery point, verify, restore
//	Root, Root → Diff → what changed between two points
//
// # The tree
//
// A disk is cut into blocks of the store's block size; the last one is padded with
// zeros. A [Node] of level 0 names FanOut blocks, a node of level n names FanOut
// nodes of level n-1. An absent child, the zero digest, is a hole: the whole range
// below it reads as zeros. A node without children is itself absent. A [Root] is
// what a manifest keeps: size, block size, depth and the digest of the top node,
// whose level is depth-1. Four levels of 64 KiB blocks reach 16 TiB, five 2 PiB.
//
// Depth is a field of the root and not a constant: a disk that grows gets a new
// top whose child 0 is the old one, and two trees of different depth are compared
// by taking the top of the shallower for child 0 of the deeper.
//
// # Rules
//
// A node that exists in the store proves nothing about what lies below it. The
// [Writer] therefore takes over a subtree from exactly one place, the base root it
// was given, which the caller reached from a committed point or wrote in the same
// batch. Every node is checked against its digest and its level when it is read,
// and every decoded root against the limits of the format, so that a tree from a
// peer or from a damaged disk can be wrong but never harmful.
//
// Everything here is safe for concurrent use except Writer, which has one owner.
// The byte layout of nodes and roots is in FORMAT.md.
package hashtree
