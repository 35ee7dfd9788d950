from vit_ssl_jax.evaluate.command import main

main()
