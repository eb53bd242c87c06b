// Package doctor checks whether this machine lets an appliance keep its promises:
// where the change maps lie, free space, limits, FUSE, the clock. Each finding says
// what it means and what to do; a check never changes anything.
package doctor
