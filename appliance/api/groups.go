package api

import "github.com/keelblock/keelblock/appliance/api/keelblockv1/keelblockv1connect"

type groupsService struct {
	keelblockv1connect.UnimplementedGroupsHandler
	service
}
