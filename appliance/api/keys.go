package api

import "github.com/keelblock/keelblock/appliance/api/keelblockv1/keelblockv1connect"

// keysService answers what it does not have with the code unimplemented.
type keysService struct {
	service
	keelblockv1connect.UnimplementedKeysHandler
}
