// Package keelblockv1connect holds the services of the control API as ConnectRPC
// handlers and clients, generated from appliance/api/keelblock.proto by `make proto`.
// Package api implements every call; the Unimplemented handlers that the generator makes are not used.
package keelblockv1connect
