"""Who the user is: headers of Open WebUI or a proxy, or an OIDC token."""
