"""Quality over bytes of ours and the peers. `contender`, `drawing`, `weight_bytes` and `peer*` import no sdcompress:
they run in the peers' environment, which has none."""
