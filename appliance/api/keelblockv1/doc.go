// Package keelblockv1 holds the messages of the control API, generated from
// appliance/api/keelblock.proto by `make proto`. Read that file: it says what each
// field means. Handlers stand in package api, clients use keelblockv1connect.
package keelblockv1
