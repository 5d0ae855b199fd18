from thurl.cli import main


main()
