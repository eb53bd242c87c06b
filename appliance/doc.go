// Package appliance is the contract of the product: the words, the classes of
// errors and the limits that its packages share. It holds no behaviour beyond
// checking a name.
//
// # Place in the house
//
//	config, daemon → disks (live disks on NBD), vault (points), catalog (machines, jobs)
//	api → machine, backup, restore, disks, vault, job → blockdev, dedupe
//
// # Errors
//
// What an operator meets is an [Error]: the operation and object, its class (one of
// the sentinels below, matched by errors.Is) and the next step. Package api turns
// the class into a Connect code, in one place; the command line turns the code into
// an exit status.
package appliance
