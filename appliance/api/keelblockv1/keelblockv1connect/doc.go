// Package keelblockv1connect holds the services of the control API as ConnectRPC
// handlers and clients, generated from appliance/api/keelblock.proto by `make proto`.
// Its Unimplemented handlers are the generator's; package api implements every call.
package keelblockv1connect
