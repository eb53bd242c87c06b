package api

import "github.com/keelblock/keelblock/appliance/api/keelblockv1/keelblockv1connect"

type cursorsService struct {
	keelblockv1connect.UnimplementedCursorsHandler
	service
}
