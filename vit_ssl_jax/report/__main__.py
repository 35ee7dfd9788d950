from vit_ssl_jax.report.build import main

main()
