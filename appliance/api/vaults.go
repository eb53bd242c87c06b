package api

import "github.com/keelblock/keelblock/appliance/api/keelblockv1/keelblockv1connect"

// vaultsService answers what it does not have with the code unimplemented.
type vaultsService struct {
	service
	keelblockv1connect.UnimplementedVaultsHandler
}
