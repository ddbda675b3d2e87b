# Paths and texts of this step. Its variables are described in firewall.sh.
# shellcheck shell=bash disable=SC2034

CONF=/etc/firewalld/firewalld.conf
ZONES=/etc/firewalld/zones
INSIDE=dask
OUTSIDE=dask-outside
ORIGINAL=$BEFORE/firewall
# The state to which an unconfirmed change rolls back. For the first change, this is a link to ORIGINAL.
PREVIOUS=/run/daskstack-firewall
ROLLBACK=daskstack-firewall-rollback
CLUSTER_PORTS="$SSH_PORT $PORTS${LIBRARY_PORTS:+ $LIBRARY_PORTS}"
NEEDED="TCP $CLUSTER_PORTS to $NETWORK${SSH_SOURCES:+; $SSH_PORT to $SSH_SOURCES}${OPEN:+; ${OPEN//=/ to }}"
UNMANAGED="or manage the firewall yourself (firewall: {manage: false}) and open: $NEEDED"
