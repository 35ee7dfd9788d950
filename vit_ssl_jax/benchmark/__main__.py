from vit_ssl_jax.benchmark.command import main

main()
