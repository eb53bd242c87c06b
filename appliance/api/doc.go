// Package api answers the control API of an appliance: ConnectRPC services over the
// parts that do the work. It decides nothing.
//
//	CLI, curl → run/api.sock → Handler → disks, machine, backup, restore, readers, vault, job
//
// keelblock.proto is the contract, package keelblockv1 the code generated from it:
//
//	protoc -I appliance/api --go_out=. --go_opt=module=github.com/keelblock/keelblock \
//	  --connect-go_out=. --connect-go_opt=module=github.com/keelblock/keelblock appliance/api/keelblock.proto
//
// errors.go is the one place where an error of ours becomes a Connect code. The
// caller's user is taken from the socket (SO_PEERCRED) by [ConnContext], and a file that he
// hands over by [FileListener].
//
// Calls that need the catalog or the vault wait while those are being opened, at most
// [OpeningTimeout].
package api
